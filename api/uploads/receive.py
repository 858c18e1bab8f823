"""Receives an upload into a spool file: a form or a raw CSV or spreadsheet, bounded in size and time."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from errno import ENOSPC
from pathlib import Path
from typing import BinaryIO, TypeVar

import orjson
import structlog
from aiohttp import BodyPartReader, ClientPayloadError, MultipartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from api.http.problems import Problem, ProblemCode
from api.http.trace_header import context_of
from api.uploads.csv.dialect import Dialect
from api.uploads.disposition import parse_disposition
from api.uploads.options import FIELDS
from infra.disk import free_bytes
from infra.observability import metrics
from infra.settings import Settings
from infra.spool import spool_file

logger = structlog.get_logger(__name__)

RECEIVE_TIMEOUT = 900.0  # seconds for a whole upload
READ_TIMEOUT = 30.0  # seconds without data from the client
RATE_SECONDS, RATE_BYTES = 60.0, 600_000  # least rate: this many bytes while so many seconds are spent waiting for them
WRITE_BUFFER = 256 * 1024
MAX_FIELD_BYTES = 8 * 1024
MAX_FIELDS = 100
DISK_FULL_RETRY_AFTER = "60"

RAW_TYPES = frozenset(
    {
        "text/csv",
        "text/x-csv",
        "text/comma-separated-values",
        "text/x-comma-separated-values",
        "text/tab-separated-values",
        "application/csv",
        "application/x-csv",
        "text/plain",
        "application/vnd.ms-excel",
        "application/vnd.oasis.opendocument.spreadsheet",
        "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
        "application/octet-stream",
    }
)
CONTENT_ENCODINGS = ("gzip", "deflate", "identity")

# Raised by aiohttp for a truncated form, bad headers or an unknown encoding.
_FORM_ERRORS = (ValueError, RuntimeError, HttpProcessingError)
T = TypeVar("T")


class Pace:
    """Deadlines of an upload's reads: a client must not hold an upload slot by sending slowly.

    Only the time spent waiting for the client counts, not the time that the disk needs.
    """

    def __init__(self) -> None:
        self._waited = 0.0
        self._bytes = 0

    async def read(self, read: Awaitable[T]) -> T:
        """Await a read from the client. Raises TimeoutError after ``READ_TIMEOUT``, or below the least rate."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        async with asyncio.timeout(READ_TIMEOUT):
            result = await read
        self._waited += loop.time() - started
        if isinstance(result, bytes):
            self._bytes += len(result)
        if self._bytes >= RATE_BYTES:
            self._waited, self._bytes = 0.0, 0
        elif self._waited > RATE_SECONDS:
            raise TimeoutError
        return result


@dataclass
class Received:
    """A received upload: the spool file and the form fields.

    ``dialect`` is known if the file was made of a spreadsheet, ``sheet`` its name if it was one of several.
    """

    path: Path
    traceparent: str | None
    pace: Pace = field(default_factory=Pace)
    sha256: str = ""
    size: int = 0
    content_type: str | None = None
    dialect: Dialect | None = None
    sheet: str | None = None
    fields: dict[str, list[str]] = field(default_factory=dict)

    def add_field(self, name: str, value: str) -> None:
        """Add a form field or query parameter; an empty one counts as absent."""
        if value:
            self.fields.setdefault(name, []).append(value)

    @property
    def fingerprint(self) -> str:
        """Hash of the file and the fields, to detect an Idempotency-Key that is reused for another upload."""
        if not self.fields:
            return self.sha256
        return hashlib.sha256(orjson.dumps([self.sha256, self.fields], option=orjson.OPT_SORT_KEYS)).hexdigest()


@asynccontextmanager
async def receive(request: web.Request, settings: Settings) -> AsyncIterator[Received]:
    """Stream the upload into a spool file, which is always deleted on exit."""
    with spool_file(settings.data_dir / "spool", "upload-") as file:
        received = Received(Path(file.name), traceparent=context_of(request))
        try:
            async with asyncio.timeout(RECEIVE_TIMEOUT):
                await _receive_into(request, received, file, settings)
            await asyncio.to_thread(file.flush)
        except (ClientPayloadError, web.RequestPayloadError, ConnectionError):
            raise Problem(ProblemCode.UPLOAD_UNREADABLE, "the upload was aborted, or can't be decompressed") from None
        except TimeoutError:
            raise Problem(
                ProblemCode.UPLOAD_TOO_SLOW,
                f"upload timed out: no data for {READ_TIMEOUT:g} s, less than {RATE_BYTES:,} bytes in"
                f" {RATE_SECONDS:g} s, or more than {RECEIVE_TIMEOUT:g} s in total",
            ) from None
        except OSError as error:
            logger.error("writing spool file failed", path=file.name, error=str(error))
            raise no_room() from None
        metrics.UPLOAD_BYTES.inc(received.size)
        for name in FIELDS:  # form fields take precedence over query parameters
            for value in request.query.getall(name, ()):
                received.add_field(name, value)
        yield received


async def _receive_into(request: web.Request, received: Received, file: BinaryIO, settings: Settings) -> None:
    # aiohttp decompresses in bounded chunks; size limits apply to the decompressed bytes.
    if request.headers.get("Content-Encoding", "identity").lower() not in CONTENT_ENCODINGS:
        raise Problem(
            ProblemCode.UNSUPPORTED_ENCODING,
            f"unsupported Content-Encoding: use {', '.join(CONTENT_ENCODINGS)}",
            headers={"Accept-Encoding": ", ".join(CONTENT_ENCODINGS)},
        )
    if request.content_length is not None and request.content_length > settings.max_upload_bytes + WRITE_BUFFER:
        raise _too_large(settings.max_upload_bytes)
    if request.content_type == "multipart/form-data":
        await _receive_form(await _multipart(request), received, file, settings)
    elif request.content_type in RAW_TYPES:
        received.content_type = request.headers.get("Content-Type")
        await _spool(request.content.iter_chunked(WRITE_BUFFER), received, file, settings)
        if not received.size:
            raise Problem(ProblemCode.BODY_MISSING, "the request body is empty: send the CSV in it")
    else:
        raise Problem(
            ProblemCode.UNSUPPORTED_MEDIA_TYPE,
            "send multipart/form-data with the CSV in the part `file`, or the CSV itself as text/csv",
            headers={"Accept": "multipart/form-data, text/csv"},
        )


async def _multipart(request: web.Request) -> MultipartReader:
    try:
        return await request.multipart()
    except ValueError:
        raise _bad_form("it has no boundary") from None


async def _receive_form(form: MultipartReader, received: Received, file: BinaryIO, settings: Settings) -> None:
    found = False
    fields = 0
    try:
        while (part := await received.pace.read(form.next())) is not None:
            if not isinstance(part, BodyPartReader):
                raise _bad_form("it has a nested form")
            disposition = parse_disposition(part.headers.get("Content-Disposition", ""))
            # The published clients name the part `file`, `csv` or `csvFile`: any part with a file name is the CSV.
            if disposition.filename is not None or disposition.name == "file":
                if found:
                    raise _bad_form("it has more than one file")
                found = True
                encoding = part.headers.get("Content-Transfer-Encoding", "binary").strip().lower()
                if encoding not in ("7bit", "8bit", "binary"):
                    # RFC 7578, 4.7 deprecates it; the CSV would be read in its encoded form.
                    raise _bad_form(f"its file has the Content-Transfer-Encoding {encoding[:50]!r}: send the bytes")
                received.content_type = part.headers.get("Content-Type")
                await _spool(_chunks(part), received, file, settings)
                continue
            value = await _field(part, disposition.name, received.pace)
            if (fields := fields + 1) > MAX_FIELDS:
                raise _bad_form(f"it has more than {MAX_FIELDS} fields")
            if disposition.name in FIELDS:
                received.add_field(disposition.name, value)
    except _FORM_ERRORS:
        raise _bad_form("it is malformed or truncated") from None
    if not found:
        raise Problem(
            ProblemCode.FILE_MISSING,
            "the form has no file: send the CSV as the part `file`",
        )


def _bad_form(why: str) -> Problem:
    return Problem(ProblemCode.BAD_FORM, f"the multipart form can't be read: {why}")


async def _chunks(part: BodyPartReader) -> AsyncIterator[bytes]:
    while chunk := await part.read_chunk(64 * 1024):
        yield chunk


async def _field(part: BodyPartReader, name: str | None, pace: Pace) -> str:
    value = bytearray()
    while chunk := await pace.read(part.read_chunk(MAX_FIELD_BYTES)):
        value += chunk
        if len(value) > MAX_FIELD_BYTES:
            raise Problem(
                ProblemCode.FIELD_TOO_LARGE,
                f"the form field {(name or '')[:100]!r} has more than {MAX_FIELD_BYTES} bytes",
            )
    return value.decode(errors="replace").strip()


async def _spool(chunks: AsyncIterator[bytes], received: Received, file: BinaryIO, settings: Settings) -> None:
    digest = hashlib.sha256()
    buffer = bytearray()
    iterator = aiter(chunks)
    while True:
        try:
            chunk = await received.pace.read(anext(iterator))
        except StopAsyncIteration:
            break
        received.size += len(chunk)
        if received.size > settings.max_upload_bytes:
            raise _too_large(settings.max_upload_bytes)
        digest.update(chunk)
        buffer += chunk
        if len(buffer) >= WRITE_BUFFER:
            await asyncio.to_thread(_write, file, bytes(buffer), settings.min_free_bytes)
            buffer.clear()
    await asyncio.to_thread(_write, file, bytes(buffer), settings.min_free_bytes)
    received.sha256 = digest.hexdigest()


def _write(file: BinaryIO, chunk: bytes, min_free_bytes: int) -> None:
    """Write if at least ``min_free_bytes`` of the disk, which Kafka may share, are free; else raise OSError."""
    if free_bytes(Path(file.name).parent) < min_free_bytes:
        raise OSError(ENOSPC, f"less than {min_free_bytes:,} bytes are free on the disk")
    file.write(chunk)


def no_room() -> Problem:
    return Problem(
        ProblemCode.NO_ROOM,
        f"cannot spool the upload: the server's disk is full; retry after {DISK_FULL_RETRY_AFTER} s",
        headers={"Retry-After": DISK_FULL_RETRY_AFTER},
    )


def _too_large(limit: int) -> Problem:
    return Problem(
        ProblemCode.TOO_LARGE,
        f"a CSV may have at most {limit:,} bytes",
        limit=limit,
    )
