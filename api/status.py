"""How far a request is."""

import hashlib
from http import HTTPStatus

import orjson
from aiohttp import web

from api.context import CONTEXT
from api.keys import OWNER
from api.problems import not_found, unavailable
from api.routes import Answer, Parameter, Route
from infra.cassandra.session import CassandraUnavailableError
from streams.progress.view import StaleViewError
from streams.request.status import Status

RETRY_AFTER_SECONDS = "1"

REQUEST_ID = Parameter(
    "request_id", "path", str, "`requestId` of the upload's answer", "b2da3e5f-e062-435c-aaa5-a9d67346ed1d"
)
REQUEST_PROBLEMS = {
    HTTPStatus.NOT_FOUND: "There is no such request, or another key made it.",
    HTTPStatus.SERVICE_UNAVAILABLE: "It is not known just now; try again after `Retry-After` seconds.",
}


async def status_of(request: web.Request) -> Status:
    """The status of the request that the path names, if it belongs to whoever asks."""
    request_id = request.match_info["request_id"]
    try:
        status = await request.app[CONTEXT].status(request_id)
    except (StaleViewError, CassandraUnavailableError):
        raise unavailable("the status is not known just now") from None
    # To another's key a request doesn't exist: not even that it does is told.
    if status is None or status.owner != request[OWNER]:
        raise not_found(request_id)
    return status


async def get_status(request: web.Request) -> web.Response:
    """``GET /api/status/{id}``: the status object, or 304 while it is the one the client has."""
    status = await status_of(request)
    body = orjson.dumps(status.as_dict())
    headers = {"ETag": f'"{fingerprint(body)}"', "Cache-Control": "no-cache"}
    if status.status == "processing":
        headers["Retry-After"] = RETRY_AFTER_SECONDS
    if _matches(request, headers["ETag"]):
        return web.Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
    return web.Response(body=body, content_type="application/json", charset="utf-8", headers=headers)


def fingerprint(body: bytes) -> str:
    """What tells one status object from another."""
    return hashlib.sha256(body).hexdigest()[:32]


def _matches(request: web.Request, etag: str) -> bool:
    known = request.if_none_match or ()
    return any(tag.value in ("*", etag.strip('"')) for tag in known)


def routes() -> list[Route]:
    return [
        Route(
            "GET",
            "/api/status/{request_id}",
            get_status,
            tag="Requests",
            summary="Tell how far a request is",
            description="Ask until `status` is `completed`; send the `ETag` back as `If-None-Match`, and the answer is"
            " 304 without a body until something changed.",
            parameters=(
                REQUEST_ID,
                Parameter("If-None-Match", "header", str, "`ETag` of the status that the client has"),
            ),
            answers={
                HTTPStatus.OK: Answer(
                    "How far it is",
                    {"application/json": Status},
                    {
                        "ETag": "of this status",
                        "Retry-After": "seconds until asking again, while processing",
                    },
                ),
                HTTPStatus.NOT_MODIFIED: Answer("Nothing changed since the status that has this `ETag`"),
            },
            problems=REQUEST_PROBLEMS,
            aliases=("/status/{request_id}",),
        )
    ]
