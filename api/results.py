"""What came of a request: its output CSV and its images."""

import asyncio
import re
from http import HTTPStatus

import structlog
from aiohttp import web

from api.context import CONTEXT, Context
from api.problems import Problem, expired, unavailable
from api.routes import Answer, Parameter, Route
from api.status import REQUEST_ID, REQUEST_PROBLEMS, status_of
from infra.cassandra.session import CassandraUnavailableError
from infra.storage import StorageError, StoredObject

log = structlog.get_logger(__name__)

IMAGE_TYPES = {
    "jpg": "image/jpeg",
    "png": "image/png",
    "webp": "image/webp",
    "gif": "image/gif",
    "tiff": "image/tiff",
    "avif": "image/avif",
}
SLOW_CLIENT = 60.0  # seconds that a client may need for one piece, of a quarter of a MiB
LINK_KEPT_SECONDS = 1800  # well within the time that a signed link is good for
_IMAGE_PATH = re.compile(rf"[0-9a-f-]{{36}}/\d{{1,8}}\.({'|'.join(IMAGE_TYPES)})")


async def download(request: web.Request) -> web.StreamResponse:
    """``GET /api/download/{id}``: the output CSV, once the request is completed."""
    status = await status_of(request)
    if status.status == "expired":
        raise expired()
    if status.output_csv_path is None:
        raise Problem(
            HTTPStatus.CONFLICT,
            "not-completed",
            f"the request is {status.status}: {status.progress}% of its images have their result",
            headers={"Retry-After": "1"},
        )
    stored = await _open(request, status.output_csv_path)
    if stored is None:
        raise Problem(HTTPStatus.GONE, "output-gone", "the output CSV is not in the storage any more")
    return await _send(
        request,
        stored,
        {
            "Content-Type": "text/csv; charset=utf-8",
            "Content-Disposition": f'attachment; filename="{status.request_id}.csv"',
            "X-Content-Type-Options": "nosniff",
        },
    )


async def image(request: web.Request) -> web.StreamResponse:
    """``GET /images/…``: a stored image. Its bytes never change under one address."""
    path = request.match_info["path"]
    match = _IMAGE_PATH.fullmatch(path)
    if match is None:
        raise _unknown_image()
    context = request.app[CONTEXT]
    key = f"images/{path}"
    if context.settings.storage_redirect and (link := await _signed_link(request, key)):
        raise web.HTTPFound(link, headers={"Cache-Control": f"private, max-age={LINK_KEPT_SECONDS}"})
    stored = await _open(request, key)
    if stored is None:
        raise await _why_no_image(context, request_id=path.partition("/")[0])
    headers = {
        "Content-Type": IMAGE_TYPES[match[1]],
        "Cache-Control": "public, max-age=86400",
        "X-Content-Type-Options": "nosniff",
        # An image is never a document: nothing in it may run.
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Cross-Origin-Resource-Policy": "cross-origin",
    }
    if stored.etag:
        headers["ETag"] = f'"{stored.etag.strip(chr(34))}"'
    return await _send(request, stored, headers)


async def _why_no_image(context: Context, request_id: str) -> Problem:
    try:
        # What is not known yet has no link yet that anybody could follow: Kafka need not be asked.
        status = context.view.get(request_id) or await context.history.status(request_id)
    except CassandraUnavailableError:
        return unavailable("whether there is such an image is not known just now")
    return expired() if status is not None and status.status == "expired" else _unknown_image()


def _unknown_image() -> Problem:
    return Problem(HTTPStatus.NOT_FOUND, "unknown-image", "there is no such image")


async def _signed_link(request: web.Request, key: str) -> str | None:
    try:
        return await request.app[CONTEXT].storage.signed_link(key)
    except StorageError:
        raise unavailable("the storage doesn't answer") from None


async def _open(request: web.Request, key: str) -> StoredObject | None:
    try:
        return await request.app[CONTEXT].storage.get(key)
    except StorageError:
        raise unavailable("the storage doesn't answer") from None


async def _send(request: web.Request, stored: StoredObject, headers: dict[str, str]) -> web.StreamResponse:
    response = web.StreamResponse(headers=headers)
    response.content_length = stored.size
    try:
        await response.prepare(request)
        if request.method != "HEAD":
            async for chunk in stored.chunks:
                await asyncio.wait_for(response.write(chunk), SLOW_CLIENT)
        await asyncio.wait_for(response.write_eof(), SLOW_CLIENT)
    except (StorageError, ConnectionError, TimeoutError) as error:
        # The client goes, sleeps, or the storage breaks: an answer that has begun can only be broken off.
        log.info("answer broken off", path=request.path, error=str(error) or type(error).__name__)
        if request.transport is not None:
            request.transport.abort()
    return response


def routes() -> list[Route]:
    return [
        Route(
            "GET",
            "/api/download/{request_id}",
            download,
            tag="Requests",
            summary="Download the output CSV",
            description="The rows of the upload in their order, with `Output Image URLs` added: the n-th output URL"
            " belongs to the n-th input URL. A failed image leaves its place empty, and a column `Errors` says why.",
            parameters=(REQUEST_ID,),
            answers={
                HTTPStatus.OK: Answer(
                    "The output CSV, in UTF-8 with a byte order mark",
                    {"text/csv": str},
                    {"Content-Disposition": "attachment, with a file name"},
                )
            },
            problems={
                **REQUEST_PROBLEMS,
                HTTPStatus.CONFLICT: "The request is not completed; `Retry-After` says when to ask again.",
                HTTPStatus.GONE: "The request's files had their time and were removed.",
            },
            aliases=("/download/{request_id}",),
        ),
        Route(
            "GET",
            "/images/{path:.+}",
            image,
            tag="Images",
            summary="Get a stored image",
            description="Its address stands in the output CSV. Its bytes never change.",
            parameters=(
                Parameter("path", "path", str, "request id, image index and format", f"{REQUEST_ID.example}/0.jpg"),
            ),
            answers={
                HTTPStatus.OK: Answer(
                    "The image", dict.fromkeys(IMAGE_TYPES.values(), bytes), {"ETag": "of the bytes"}
                ),
                HTTPStatus.FOUND: Answer(
                    "Where the API is set to send its clients to the bucket",
                    headers={"Location": "the image, for an hour"},
                ),
            },
            problems={
                HTTPStatus.NOT_FOUND: "There is no such image.",
                HTTPStatus.GONE: "The request's files had their time and were removed.",
                HTTPStatus.SERVICE_UNAVAILABLE: "The storage doesn't answer; try again after `Retry-After` seconds.",
            },
            needs_key=False,
        ),
    ]
