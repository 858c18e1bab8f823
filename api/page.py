"""Web page at ``/``: static files without a build step."""

from http import HTTPStatus
from pathlib import Path

from aiohttp import web

from api.contract.routes import Parameter, Response, Route

PAGE = Path(__file__).parent / "web" / "page"

_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".csv": "text/csv"}
# Allow-list of files, against path traversal.
_FILES = {path.name: path for path in PAGE.iterdir() if path.suffix in _TYPES}

# No inline code, and no text is parsed as HTML (trusted types). Only images may be cross-origin: the originals are on
# the shops' servers.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: http: https:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script';"
    " trusted-types 'none'"
)
# Revalidated by ETag on each load, so that page and API are always of the same release.
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
    unchanged = Response("The client's copy is current")
    return [
        Route(
            "GET",
            "/",
            page,
            tag="Documents",
            summary="Web page",
            responses={
                HTTPStatus.OK: Response("The HTML page", {"text/html": str}),
                HTTPStatus.NOT_MODIFIED: unchanged,
            },
            needs_key=False,
        ),
        Route(
            "GET",
            "/page/{file}",
            page_file,
            tag="Documents",
            summary="Get a static file of the web page",
            parameters=(Parameter("file", "path", str, "file name", "style.css"),),
            responses={
                HTTPStatus.OK: Response("The file", dict.fromkeys(_TYPES.values(), str)),
                HTTPStatus.NOT_MODIFIED: unchanged,
            },
            problems={HTTPStatus.NOT_FOUND: "There is no such file."},
            needs_key=False,
        ),
    ]
