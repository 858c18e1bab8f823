"""ZIP archive of a request's images, streamed in constant memory."""

import asyncio
import tempfile
import zlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from http import HTTPStatus
from typing import IO, Annotated, Any

from aiohttp import web
from pydantic import Field

from api.context import CONTEXT, Context
from api.contract.routes import Parameter, Response, Route
from api.http.api_keys import OWNER
from api.http.paging import bad_query, number_of
from api.http.problems import Problem, ProblemCode, unavailable, unavailable_on
from api.http.quotas import ConcurrencyLimit, share_of
from api.requests.download import completed_status_of, send
from api.requests.zip_layout import (
    ENTRY_LIMIT,
    data_descriptor,
    directory_entry,
    end_of_archive,
    entry_name,
    local_header,
)
from infra.cancellation import cancel_and_wait
from infra.cassandra.session import CassandraUnavailableError, utc
from infra.errors import ExplainedError
from infra.settings import Settings
from infra.storage import StorageError, StoredObject
from streams.request.status import Status
from streams.request.tally import chunk_of, chunk_range

MAX_ARCHIVES = 32
"""Concurrent archives of a process. Each may need 200 bytes of disk per image."""
MAX_NUMBER = 999_999_999
PAGE_SIZE = 200  # images read from Cassandra at once, of up to 4 KiB each
RETRY_CASSANDRA_FOR = 5.0  # seconds
DIRECTORY_MEMORY = 1024 * 1024  # bytes of a central directory in memory; a larger one is in a temporary file
READ_BYTES = 64 * 1024
READ_AHEAD = 4
"""Images after the current one that are read meanwhile, so that each doesn't wait for a round trip to the storage."""
READ_AHEAD_BYTES = 512 * 1024
"""Maximum size of an image that is read ahead; larger ones are opened in their turn, and never in memory as a whole."""


class MissingResultError(ExplainedError):
    """A result of the completed request is not in the history, which is being rebuilt."""


class MissingImageError(ExplainedError):
    """An image of the request is not in the storage."""


ARCHIVES = web.AppKey("archives", ConcurrencyLimit)


def archive_limit(settings: Settings) -> ConcurrencyLimit:
    return ConcurrencyLimit(
        MAX_ARCHIVES,
        share_of(MAX_ARCHIVES, settings),
        lambda reason: unavailable(f"too many concurrent archives: {reason}"),
    )


async def archive(request: web.Request) -> web.StreamResponse:
    """``GET /api/requests/{id}/archive.zip``: the images of a completed request, from number ``?from=`` on."""
    first = number_of(request, "from", default=1, maximum=MAX_NUMBER)
    status = await completed_status_of(request, missing="no archive yet")
    if first > status.total:
        raise bad_query("from", f"the request has {status.total} images")
    suffix = f"-from-{first}" if first > 1 else ""
    headers = {
        "Content-Type": "application/zip",
        "Content-Disposition": f'attachment; filename="{status.request_id}{suffix}.zip"',
        "X-Content-Type-Options": "nosniff",
    }
    if request.method == "HEAD":
        return web.Response(headers=headers)
    with request.app[ARCHIVES].take(request[OWNER]):
        async with aclosing(_archive(request.app[CONTEXT], status, first)) as chunks:
            try:
                with unavailable_on(
                    *(StorageError, CassandraUnavailableError, MissingResultError),
                    reason="cannot read the images: Cassandra or the storage is unavailable",
                ):
                    start = await anext(chunks)
            except MissingImageError as error:
                raise Problem(ProblemCode.OUTPUT_GONE, str(error)) from None
            return await send(request, _chain(start, chunks), headers)


async def _chain(start: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield start
    async for chunk in chunks:
        yield chunk


async def _archive(context: Context, status: Status, first: int) -> AsyncGenerator[bytes, None]:
    """The archive in chunks. Raises ExplainedError or OSError rather than leaving out an image."""
    count = offset = 0
    objects = _stored(context, _images(context, status, first))
    with _temporary(context.settings) as directory:
        async with aclosing(objects):
            async for number, image, stored in objects:
                path: str = image["output_path"]
                extension = path.rpartition(".")[2]
                name = entry_name(number, status.total, image["product_name"] or "", extension).encode()
                modified = utc(image["time"])
                if stored is None:
                    raise MissingImageError(f"image {number} was deleted from the storage")
                if stored.size >= ENTRY_LIMIT:
                    raise StorageError(f"{path} has {stored.size} bytes, too many for an archive")
                crc = size = 0
                header = local_header(name, modified)
                yield header
                async for chunk in stored.chunks:
                    crc = zlib.crc32(chunk, crc)
                    size += len(chunk)
                    yield chunk
                if size != stored.size:
                    raise StorageError(f"{path} ended after {size} of {stored.size} bytes")
                descriptor = data_descriptor(crc, size)
                yield descriptor
                await asyncio.to_thread(directory.write, directory_entry(name, modified, crc, size, offset))
                offset += len(header) + size + len(descriptor)
                count += 1
        directory_size = directory.tell()
        directory.seek(0)
        while chunk := await asyncio.to_thread(directory.read, READ_BYTES):
            yield chunk
        yield end_of_archive(count, directory_size, offset)


@contextmanager
def _temporary(settings: Settings) -> Iterator[IO[bytes]]:
    folder = settings.data_dir / "spool"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.SpooledTemporaryFile(DIRECTORY_MEMORY, dir=str(folder)) as file:
        yield file


async def _stored(
    context: Context, images: AsyncIterator[tuple[int, dict[str, Any]]]
) -> AsyncGenerator[tuple[int, dict[str, Any], StoredObject | None], None]:
    """The images with their stored objects, in order; the next small ones are read meanwhile."""
    ahead: deque[tuple[int, dict[str, Any], asyncio.Task[StoredObject | None] | None]] = deque()

    async def opened() -> tuple[int, dict[str, Any], StoredObject | None]:
        number, image, reading = ahead[0]
        stored = await (context.storage.get(image["output_path"]) if reading is None else reading)
        ahead.popleft()
        return number, image, stored

    try:
        async for number, image in images:
            is_small = (image["output_bytes"] or 0) <= READ_AHEAD_BYTES
            reading = asyncio.create_task(_read(context, image["output_path"])) if is_small else None
            ahead.append((number, image, reading))
            if len(ahead) > READ_AHEAD:
                yield await opened()
        while ahead:
            yield await opened()
    finally:
        await cancel_and_wait(*(reading for _, _, reading in ahead if reading is not None))


async def _read(context: Context, path: str) -> StoredObject | None:
    """An object with its content in memory, unless it is larger than its image was."""
    stored = await context.storage.get(path)
    if stored is None or stored.size > READ_AHEAD_BYTES:
        return stored
    content = [chunk async for chunk in stored.chunks]

    async def chunks() -> AsyncIterator[bytes]:
        for chunk in content:
            yield chunk

    return StoredObject(stored.size, stored.etag, chunks())


async def _images(context: Context, status: Status, first: int) -> AsyncIterator[tuple[int, dict[str, Any]]]:
    """Number (from 1) and fields of the images that succeeded. Raises MissingResultError for one without a result."""
    start = first - 1
    while start < status.total:
        bucket, _ = chunk_of(start)
        end = min(start + PAGE_SIZE, chunk_range(bucket, status.total).stop)
        rows = await context.history.listed_images(
            status.request_id, bucket, start=start, limit=end - start, retry_for=RETRY_CASSANDRA_FOR
        )
        for index in range(start, end):
            image = rows.get(index)
            if image is None or (image["output_path"] is None and (image["run"] or 0) < status.run):
                raise MissingResultError(f"the result of image {index + 1} is missing")
            if image["output_path"] is not None:
                yield index + 1, image
        start = end


def routes() -> list[Route]:
    return [
        Route(
            "GET",
            "/api/requests/{request_id}/archive.zip",
            archive,
            tag="Requests",
            summary="Download the images as a ZIP archive",
            description="The images that succeeded, uncompressed, named by their number in CSV order and their product."
            " The archive is streamed; if it can't be completed, the connection is broken off. Then `from` continues"
            " with a second archive.",
            parameters=(
                Parameter(
                    "from",
                    "query",
                    Annotated[int, Field(ge=1, le=MAX_NUMBER)],
                    "number of the first image, from 1, as in the names of the files",
                ),
            ),
            responses={
                HTTPStatus.OK: Response(
                    "The archive",
                    {"application/zip": bytes},
                    {"Content-Disposition": "attachment with a file name"},
                )
            },
            problems={
                HTTPStatus.BAD_REQUEST: "`from` is not the number of an image of the request.",
                HTTPStatus.CONFLICT: "The request is not completed; retry after `Retry-After` seconds.",
                HTTPStatus.GONE: "The request's files have expired and were deleted.",
                HTTPStatus.SERVICE_UNAVAILABLE: "Kafka, Cassandra or the storage is unavailable, or too many archives"
                " are being downloaded; retry after `Retry-After` seconds.",
            },
        )
    ]
