"""The page for people at ``/``: files that are sent as they are, written without a build step."""

from http import HTTPStatus
from pathlib import Path

from aiohttp import web

from api.routes import Answer, Parameter, Route

PAGE = Path(__file__).parent / "web" / "page"

_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".csv": "text/csv"}
# Only what is listed here is ever opened, whatever a path says.
_FILES = {path.name: path for path in PAGE.iterdir() if path.suffix in _TYPES}

# Nothing inline, and no text is ever made into elements (trusted types). Only images may come from elsewhere:
# the originals lie on the shops' servers.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: http: https:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script';"
    " trusted-types 'none'"
)
# A browser asks each time whether it has the newest, by ETag: page and API are of one release.
_CACHE = {"Cache-Control": "no-cache"}


async def page(request: web.Request) -> web.FileResponse:
    headers = {**_CACHE, "Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": POLICY}
    return web.FileResponse(PAGE / "index.html", headers=headers)


async def page_file(request: web.Request) -> web.FileResponse:
    path = _FILES.get(request.match_info["file"])
    if path is None:
        raise web.HTTPNotFound
    return web.FileResponse(path, headers={**_CACHE, "Content-Type": f"{_TYPES[path.suffix]}; charset=utf-8"})


def routes() -> list[Route]:
    unchanged = Answer("It is the one that the client has")
    return [
        Route(
            "GET",
            "/",
            page,
            tag="Documents",
            summary="Use shrinkstream in a browser",
            answers={
                HTTPStatus.OK: Answer("A page for people", {"text/html": str}),
                HTTPStatus.NOT_MODIFIED: unchanged,
            },
            needs_key=False,
        ),
        Route(
            "GET",
            "/page/{file}",
            page_file,
            tag="Documents",
            summary="Get a file of that page",
            parameters=(Parameter("file", "path", str, "its name", "style.css"),),
            answers={
                HTTPStatus.OK: Answer("The file", dict.fromkeys(_TYPES.values(), str)),
                HTTPStatus.NOT_MODIFIED: unchanged,
            },
            problems={HTTPStatus.NOT_FOUND: "There is no such file."},
            needs_key=False,
        ),
    ]
