"""Downloads: the output CSV of a request and its stored images."""

import asyncio
import re
from collections.abc import AsyncIterator
from http import HTTPStatus

import structlog
from aiohttp import web

from api.context import CONTEXT, Context
from api.contract.routes import REQUEST_ID, Parameter, Response, Route
from api.http.etag import is_current
from api.http.problems import Problem, ProblemCode, expired, unavailable, unavailable_on
from api.http.rate_limit import RateLimit, address_of
from api.requests.status import status_of
from infra.cassandra.session import CassandraUnavailableError
from infra.errors import ExplainedError
from infra.storage import IMAGE_CACHE_CONTROL, StorageError, StoredObject
from streams.request.status import Status

logger = structlog.get_logger(__name__)

IMAGE_TYPES = {
    "jpg": "image/jpeg",
    "png": "image/png",
    "webp": "image/webp",
    "gif": "image/gif",
    "tiff": "image/tiff",
    "avif": "image/avif",
}
WRITE_TIMEOUT = 60.0  # seconds for a slow client to take one chunk of 256 KiB
REDIRECT_MAX_AGE_SECONDS = 1800  # well below the lifetime of a signed URL

MISSES = web.AppKey("image_misses", RateLimit)
"""Limits each address to misses: image URLs need no key, and each miss costs a read of the storage and of Cassandra.
Hits are unlimited, since all clients of a gateway share its address."""
MISSES_PER_SECOND, MISS_BURST = 20, 500

# Pages of any site may show the images, also through a redirect to the bucket.
_EMBEDDABLE = {"Cross-Origin-Resource-Policy": "cross-origin"}
_IMAGE_PATH = re.compile(rf"[0-9a-f-]{{36}}/\d{{1,8}}\.({'|'.join(IMAGE_TYPES)})")


async def download(request: web.Request) -> web.StreamResponse:
    """``GET /api/download/{id}``: the output CSV of a completed request."""
    status = await completed_status_of(request, missing="no output CSV yet")
    stored = await _open(request, status.output_csv_path or "")
    if stored is None:
        raise Problem(ProblemCode.OUTPUT_GONE, "the output CSV was deleted from the storage")
    return await send(
        request,
        stored.chunks,
        {
            "Content-Type": "text/csv; charset=utf-8",
            "Content-Disposition": f'attachment; filename="{status.request_id}.csv"',
            "X-Content-Type-Options": "nosniff",
        },
        size=stored.size,
    )


async def completed_status_of(request: web.Request, *, missing: str) -> Status:
    """The status of a completed request, as `status_of`. Raises Problem: 409 before completion, 410 if expired."""
    status = await status_of(request, fresh=False)  # completed requests can be read while Kafka is away
    if status.status == "expired":
        raise expired()
    if status.output_csv_path is None:
        raise Problem(
            ProblemCode.NOT_COMPLETED,
            f"{missing}: the request is {status.status}, {status.progress}% done",
            headers={"Retry-After": "1"},
        )
    return status


async def image(request: web.Request) -> web.StreamResponse:
    """``GET /images/…``: a stored image; immutable."""
    path = request.match_info["path"]
    match = _IMAGE_PATH.fullmatch(path)
    if match is None:
        raise _unknown_image()
    context = request.app[CONTEXT]
    key = f"images/{path}"
    if context.settings.storage_redirect and (link := await _signed_link(request, key)):
        max_age = f"private, max-age={REDIRECT_MAX_AGE_SECONDS}"
        raise web.HTTPFound(link, headers={"Cache-Control": max_age, **_EMBEDDABLE})
    stored = await _open(request, key)
    if stored is None:
        request.app[MISSES].require(f"address {address_of(request)}")
        raise await _missing_image(context, request_id=path.partition("/")[0])
    headers = {
        "Cache-Control": IMAGE_CACHE_CONTROL,
        "X-Content-Type-Options": "nosniff",
        # Stored XSS protection: an image opened as a document must not run scripts.
        "Content-Security-Policy": "default-src 'none'; sandbox",
        **_EMBEDDABLE,
    }
    if stored.etag:
        headers["ETag"] = f'"{stored.etag.strip(chr(34))}"'
        if is_current(request, headers["ETag"]):
            return web.Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
    headers["Content-Type"] = IMAGE_TYPES[match[1]]
    return await send(request, stored.chunks, headers, size=stored.size)


async def _missing_image(context: Context, request_id: str) -> Problem:
    """410 for an image of an expired request, else 404."""
    try:
        # No catch-up with Kafka: a request that the view doesn't have yet has no image URLs yet.
        status = context.view.get(request_id) or await context.history.status(request_id)
    except CassandraUnavailableError:
        return unavailable("cannot look up the image's request: Cassandra is unavailable")
    return expired() if status is not None and status.status == "expired" else _unknown_image()


def _unknown_image() -> Problem:
    return Problem(ProblemCode.UNKNOWN_IMAGE, "there is no such image")


async def _signed_link(request: web.Request, key: str) -> str | None:
    with unavailable_on(StorageError, reason="cannot sign the image's URL: the storage is unavailable"):
        return await request.app[CONTEXT].storage.signed_link(key)


async def _open(request: web.Request, key: str) -> StoredObject | None:
    with unavailable_on(StorageError, reason="cannot read the file: the storage is unavailable"):
        return await request.app[CONTEXT].storage.get(key)


async def send(
    request: web.Request, chunks: AsyncIterator[bytes], headers: dict[str, str], *, size: int | None = None
) -> web.StreamResponse:
    """Stream a response of ``size`` bytes, or chunked. Aborts the connection on an error: no body ends short."""
    response = web.StreamResponse(headers=headers)
    response.content_length = size
    try:
        await response.prepare(request)
        if request.method != "HEAD":
            async for chunk in chunks:
                async with asyncio.timeout(WRITE_TIMEOUT):
                    await response.write(chunk)
        async with asyncio.timeout(WRITE_TIMEOUT):
            await response.write_eof()
    except (ExplainedError, OSError) as error:
        # Disconnect, slow client, Cassandra or storage error: a started response can only be aborted.
        logger.info("response aborted", path=request.path, error=str(error) or type(error).__name__)
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
            description="The rows of the upload in their order, with the column `Output Image URLs` added: the n-th"
            " output URL belongs to the n-th input URL. The URL of a failed image is empty, and a column `Errors` has"
            " the reason.",
            responses={
                HTTPStatus.OK: Response(
                    "The output CSV, in UTF-8 with a byte order mark",
                    {"text/csv": str},
                    {"Content-Disposition": "attachment with a file name"},
                )
            },
            problems={
                HTTPStatus.CONFLICT: "The request is not completed; retry after `Retry-After` seconds.",
                HTTPStatus.GONE: "The request's files have expired and were deleted.",
            },
            aliases=("/download/{request_id}",),
        ),
        Route(
            "GET",
            "/images/{path:.+}",
            image,
            tag="Images",
            summary="Get a stored image",
            description="Its URL is in the output CSV. The image is immutable.",
            parameters=(
                Parameter("path", "path", str, "request id, image index and format", f"{REQUEST_ID.example}/0.jpg"),
                Parameter("If-None-Match", "header", str, "`ETag` of the client's copy"),
            ),
            responses={
                HTTPStatus.OK: Response(
                    "The image", dict.fromkeys(IMAGE_TYPES.values(), bytes), {"ETag": "changes with the bytes"}
                ),
                HTTPStatus.NOT_MODIFIED: Response("The client's copy is current"),
                HTTPStatus.FOUND: Response(
                    "With `SHRINKSTREAM_STORAGE_REDIRECT`: redirect to the bucket",
                    headers={"Location": "signed URL of the image, valid for an hour"},
                ),
            },
            problems={
                HTTPStatus.NOT_FOUND: "There is no such image.",
                HTTPStatus.GONE: "The request's files have expired and were deleted.",
                HTTPStatus.TOO_MANY_REQUESTS: "The address requested too many images that do not exist.",
                HTTPStatus.SERVICE_UNAVAILABLE: "The storage is unavailable; retry after `Retry-After` seconds.",
            },
            needs_key=False,
        ),
    ]
