"""API contracts and their documentation pages: ``/openapi.json``, ``/asyncapi.json``, ``/docs``."""

import secrets
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web
from pydantic import BaseModel

from api.contract import asyncapi, openapi
from api.contract.routes import Parameter, Response, Route
from infra.settings import Settings
from streams.log.topics import Topics
from streams.request.status import WebhookMessage
from streams.webhooks.message import ImagesFailedMessage, ImagesProcessedMessage

WEB = Path(__file__).parents[1] / "web"

OPENAPI = web.AppKey("openapi", bytes)
ASYNCAPI = web.AppKey("asyncapi", bytes)

_FILES = {
    "redoc.js": ("redoc/redoc.standalone.js", "text/javascript"),
    "docs.js": ("docs.js", "text/javascript"),
    "docs.css": ("docs.css", "text/css"),
}
_PAGE = (WEB / "docs.html").read_text(encoding="utf-8")


def describe(app: web.Application, routes: list[Route], settings: Settings) -> None:
    """Generate both documents once, at start-up."""
    release = version("shrinkstream")
    app[OPENAPI] = orjson.dumps(
        openapi.document(
            routes,
            {kind: _webhook(kind.replace(".", "_"), *about) for kind, about in _WEBHOOKS.items()},
            [body for _, body in _WEBHOOKS.values()],
            version=release,
            server=settings.effective_public_url,
            with_keys=settings.api_keys is not None,
        )
    )
    app[ASYNCAPI] = orjson.dumps(asyncapi.document(Topics(settings.topic_prefix), version=release))


async def openapi_json(request: web.Request) -> web.Response:
    return web.Response(body=request.app[OPENAPI], content_type="application/json")


async def asyncapi_json(request: web.Request) -> web.Response:
    return web.Response(body=request.app[ASYNCAPI], content_type="application/json")


async def docs_page(request: web.Request) -> web.Response:
    return _page("/openapi.json")


async def events_page(request: web.Request) -> web.Response:
    return _page("/asyncapi.json")


def _page(document: str) -> web.Response:
    nonce = secrets.token_urlsafe(16)
    # Redoc injects style elements at run time: the CSP allows only those with this response's nonce.
    policy = (
        f"default-src 'none'; script-src 'self'; style-src 'self' 'nonce-{nonce}'; img-src 'self' data:;"
        " font-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return web.Response(
        text=_PAGE.replace("{nonce}", nonce).replace("{document}", document),
        content_type="text/html",
        headers={"Content-Security-Policy": policy, "Cache-Control": "no-store"},
    )


async def docs_file(request: web.Request) -> web.FileResponse:
    found = _FILES.get(request.match_info["file"])
    if found is None:
        raise web.HTTPNotFound
    name, media_type = found
    return web.FileResponse(WEB / name, headers={"Content-Type": media_type, "Cache-Control": "public, max-age=3600"})


def _webhook(operation: str, summary: str, body: type[BaseModel]) -> dict[str, Any]:
    return {
        "post": {
            "operationId": operation,
            "tags": ["Requests"],
            "summary": summary,
            "description": "Sent to the `webhookUrl` of the upload, by the rules of"
            " [Standard Webhooks](https://www.standardwebhooks.com).",
            "security": [],
            "parameters": [
                {"name": name, "in": "header", "required": required, "description": text, "schema": {"type": "string"}}
                for name, required, text in (
                    ("webhook-id", True, "the same for every delivery attempt: use it to drop duplicates"),
                    ("webhook-timestamp", True, "Unix time (s) of this delivery attempt"),
                    ("webhook-signature", False, "`v1,` and a base64 HMAC-SHA256, if a secret is set"),
                )
            ],
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{body.__name__}"}}},
            },
            "responses": {
                "2XX": {"description": "Delivered. After any other status the delivery is retried with backoff."},
                "410": {"description": "Stop: no further delivery attempts."},
            },
        }
    }


_WEBHOOKS: dict[str, tuple[str, type[BaseModel]]] = {
    "request.completed": ("A request is completed", WebhookMessage),
    "image.processed": ("Images were processed; opt-in by `webhookEvents`", ImagesProcessedMessage),
    "image.failed": ("Images failed; opt-in by `webhookEvents`", ImagesFailedMessage),
}


def routes() -> list[Route]:
    page = {HTTPStatus.OK: Response("The HTML page", {"text/html": str})}
    document = {HTTPStatus.OK: Response("The document", {"application/json": dict[str, Any]})}
    return [
        Route(
            "GET", "/openapi.json", openapi_json, "Documents", "OpenAPI document of the API", document, needs_key=False
        ),
        Route(
            "GET",
            "/asyncapi.json",
            asyncapi_json,
            "Documents",
            "AsyncAPI document of the events",
            document,
            needs_key=False,
        ),
        Route("GET", "/docs", docs_page, "Documents", "API documentation", page, needs_key=False),
        Route("GET", "/docs/events", events_page, "Documents", "Event documentation", page, needs_key=False),
        Route(
            "GET",
            "/docs/{file}",
            docs_file,
            "Documents",
            "Get a static file of the documentation pages",
            {
                HTTPStatus.OK: Response("The file", {kind: str for _, kind in _FILES.values()}),
                HTTPStatus.NOT_MODIFIED: Response("The client's copy is current"),
            },
            {HTTPStatus.NOT_FOUND: "There is no such file."},
            parameters=(Parameter("file", "path", str, "file name", "docs.css"),),
            needs_key=False,
        ),
    ]
