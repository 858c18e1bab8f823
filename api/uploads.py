"""An upload: received into a spool file, checked as a whole, then written as events.

The order of the events is what makes an upload atomic: RequestCreated is written when the brokers have every
ImageRequested. A crash before that leaves images that belong to no request, which nobody is ever told of; a
crash after it leaves a request that completes.
"""

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from itertools import islice
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import structlog
from aiohttp import BodyPartReader, ClientPayloadError, MultipartReader, web
from aiohttp.http_exceptions import HttpProcessingError
from aiokafka.errors import KafkaError
from aiokafka.structs import RecordMetadata

from api.context import CONTEXT, Context
from api.csv_reader import CheckedCsv, CsvRejected, Row, check, read_rows
from api.idempotency import Claim, IdempotencyKeys
from api.keys import OWNER
from api.problems import Problem, unavailable
from infra.outbound import ForbiddenUrl, check_url
from infra.settings import Settings
from infra.spool import spool_file
from streams.events import ImageRequested, RequestCreated, utc_now

log = structlog.get_logger(__name__)

RECEIVE_TIMEOUT = 900.0  # seconds for one upload in all
PIECE_TIMEOUT = 30.0  # seconds between two pieces of an upload
WRITE_BUFFER = 1024 * 1024
MAX_FIELD_BYTES = 8 * 1024
ROWS_AT_ONCE = 500
EVENTS_IN_FLIGHT = 4000

RAW_TYPES = frozenset(
    {
        "text/csv",
        "text/tab-separated-values",
        "application/csv",
        "text/plain",
        "application/vnd.ms-excel",
        "application/octet-stream",
    }
)
# What aiohttp raises for a form that breaks off, has bad headers or an unknown encoding.
_BROKEN_FORM = (ValueError, RuntimeError, HttpProcessingError)
WEBHOOK_FIELDS = ("webhookUrl", "webhook_url")


@dataclass
class Received:
    """What came with an upload."""

    path: Path
    sha256: str = ""
    size: int = 0
    content_type: str | None = None
    fields: dict[str, str] = field(default_factory=dict)

    @property
    def webhook_url(self) -> str | None:
        return next((self.fields[name] for name in WEBHOOK_FIELDS if self.fields.get(name)), None)


async def upload(request: web.Request) -> web.Response:
    """``POST /api/upload`` and its aliases."""
    context = request.app[CONTEXT]
    async with _receive(request, context.settings) as received:
        webhook_url = _checked_webhook_url(received.webhook_url, context)
        checked = await _check(received, context.settings)
        claim = await _claim(request, context, received.sha256)
        if claim.is_new or await context.status(claim.request_id) is None:
            await _write_events(context, claim, received, checked, request[OWNER], webhook_url)
    return _accepted(claim.request_id)


def _accepted(request_id: str) -> web.Response:
    return web.json_response(
        {
            "message": "The file was accepted and its images are being processed.",
            "requestId": request_id,
            "request_id": request_id,
        },
        status=HTTPStatus.ACCEPTED,
        headers={"Location": f"/api/status/{request_id}"},
    )


@asynccontextmanager
async def _receive(request: web.Request, settings: Settings) -> AsyncIterator[Received]:
    """Stream the upload into a spool file, which is gone afterwards whatever happens."""
    with spool_file(settings.data_dir / "spool", "upload-") as file:
        received = Received(Path(file.name))
        try:
            async with asyncio.timeout(RECEIVE_TIMEOUT):
                await _receive_into(request, received, file, settings.max_upload_bytes)
            await asyncio.to_thread(file.flush)
        except (ClientPayloadError, ConnectionError):
            raise Problem(HTTPStatus.BAD_REQUEST, "upload-broken-off", "the upload broke off") from None
        except TimeoutError:
            raise Problem(HTTPStatus.REQUEST_TIMEOUT, "upload-too-slow", "the upload did not arrive in time") from None
        except OSError as error:
            log.error("upload can't be kept", path=file.name, error=str(error))
            raise Problem(
                HTTPStatus.INSUFFICIENT_STORAGE, "no-room", "there is no room for the upload just now"
            ) from None
        received.fields = {**request.query, **received.fields}
        yield received


async def _receive_into(request: web.Request, received: Received, file: BinaryIO, limit: int) -> None:
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported-encoding", "send the CSV without Content-Encoding"
        )
    if request.content_length is not None and request.content_length > limit + WRITE_BUFFER:
        raise _too_large(limit)
    if request.content_type == "multipart/form-data":
        await _receive_form(await _multipart(request), received, file, limit)
    elif request.content_type in RAW_TYPES:
        received.content_type = request.headers.get("Content-Type")
        await _spool(request.content.iter_chunked(WRITE_BUFFER), received, file, limit)
    else:
        raise Problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "unsupported-media-type",
            "send multipart/form-data with the CSV in the part `file`, or the CSV itself as text/csv",
            headers={"Accept": "multipart/form-data, text/csv"},
        )


async def _multipart(request: web.Request) -> MultipartReader:
    try:
        return await request.multipart()
    except ValueError:
        raise _bad_form("it has no boundary") from None


async def _receive_form(form: MultipartReader, received: Received, file: BinaryIO, limit: int) -> None:
    found = False
    try:
        async for part in form:
            if not isinstance(part, BodyPartReader):
                raise _bad_form("it has a form inside a form")
            # The published clients call the part `file`, `csv` or `csvFile`: what counts is that it is a file.
            if part.filename is not None or part.name == "file":
                if found:
                    raise _bad_form("it has more than one file")
                found = True
                received.content_type = part.headers.get("Content-Type")
                await _spool(_chunks(part), received, file, limit)
            elif part.name:
                received.fields[part.name] = await _field(part)
    except _BROKEN_FORM as error:
        raise _bad_form(str(error)[:200] or "it breaks off") from None
    if not found:
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "file-missing",
            "the form has no file in it: send the CSV as the part `file`",
        )


def _bad_form(why: str) -> Problem:
    return Problem(HTTPStatus.BAD_REQUEST, "bad-form", f"the multipart form can't be read: {why}")


async def _chunks(part: BodyPartReader) -> AsyncIterator[bytes]:
    while chunk := await part.read_chunk(64 * 1024):
        yield chunk


async def _field(part: BodyPartReader) -> str:
    value = bytearray()
    async for chunk in _chunks(part):
        value += chunk
        if len(value) > MAX_FIELD_BYTES:
            raise Problem(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                "field-too-large",
                f"the form field {part.name!r} has more than {MAX_FIELD_BYTES} bytes",
            )
    return value.decode(errors="replace").strip()


async def _spool(chunks: AsyncIterator[bytes], received: Received, file: BinaryIO, limit: int) -> None:
    digest = hashlib.sha256()
    buffer = bytearray()
    iterator = aiter(chunks)
    while True:
        try:
            chunk = await asyncio.wait_for(anext(iterator), PIECE_TIMEOUT)
        except StopAsyncIteration:
            break
        received.size += len(chunk)
        if received.size > limit:
            raise _too_large(limit)
        digest.update(chunk)
        buffer += chunk
        if len(buffer) >= WRITE_BUFFER:
            await asyncio.to_thread(file.write, bytes(buffer))
            buffer.clear()
    await asyncio.to_thread(file.write, bytes(buffer))
    received.sha256 = digest.hexdigest()


def _too_large(limit: int) -> Problem:
    return Problem(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "too-large",
        f"a CSV may have at most {limit:,} bytes",
        limit=limit,
    )


def _checked_webhook_url(given: str | None, context: Context) -> str | None:
    if given is None:
        return context.settings.webhook_url
    try:
        check_url(given, context.fetch_allow)
    except ForbiddenUrl as error:
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY, "bad-webhook-url", f"webhookUrl can't be used: {error.detail}"
        ) from None
    return given


async def _check(received: Received, settings: Settings) -> CheckedCsv:
    try:
        return await asyncio.to_thread(
            check,
            received.path,
            max_images=settings.max_images_per_request,
            content_type=received.content_type,
        )
    except CsvRejected as rejected:
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "csv-rejected",
            rejected.detail,
            errors=[
                {"row": error.row, "column": error.column, "code": error.code, "message": error.message}
                for error in rejected.errors
            ],
            errorCount=rejected.error_count,
        ) from None


async def _claim(request: web.Request, context: Context, body_sha256: str) -> Claim:
    key = request.headers.get("Idempotency-Key", "").strip()
    new = Claim(str(uuid4()), body_sha256, utc_now(), is_new=True)
    if not key:
        return new
    if len(key) > 255:
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "bad-idempotency-key",
            "Idempotency-Key may have at most 255 characters",
        )
    claim = await IdempotencyKeys(context.session).claim(request[OWNER], key, new)
    if claim.body_sha256 != body_sha256:
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "idempotency-key-reused",
            "this Idempotency-Key was used with another file in the last 24 hours",
        )
    return claim


async def _write_events(
    context: Context,
    claim: Claim,
    received: Received,
    checked: CheckedCsv,
    owner: str,
    webhook_url: str | None,
) -> None:
    writer = _Writer(context, claim.request_id, claim.created_at, context.settings.quality)
    try:
        async for rows in _batches(read_rows(received.path, checked)):
            for row in rows:
                await writer.write(row)
        await writer.finish()
        await context.event_log.append(
            RequestCreated(
                request_id=claim.request_id,
                time=claim.created_at,
                total=writer.images,
                rows=checked.rows,
                header=checked.header,
                body_sha256=received.sha256,
                owner=owner,
                webhook_url=webhook_url,
                image_offsets=writer.offsets,
            )
        )
    except KafkaError as error:
        log.warning("upload not written", request_id=claim.request_id, error=str(error))
        raise unavailable("Kafka doesn't take the upload's events") from None
    log.info("request created", request_id=claim.request_id, rows=checked.rows, images=writer.images)


async def _batches(rows: Iterator[Row]) -> AsyncIterator[list[Row]]:
    """Read the rows in a thread, some at a time."""
    while batch := await asyncio.to_thread(lambda: list(islice(rows, ROWS_AT_ONCE))):
        yield batch


class _Writer:
    """Writes the ImageRequested events of one request and remembers where on the topic they are."""

    def __init__(self, context: Context, request_id: str, time: datetime, quality: int) -> None:
        self._log = context.event_log
        self._request_id = request_id
        self._time = time
        self._quality = quality
        self._pending: deque[asyncio.Future[RecordMetadata]] = deque()
        self.images = 0
        self.offsets: dict[int, tuple[int, int]] = {}

    async def write(self, row: Row) -> None:
        for position, url in enumerate(row.urls):
            event = ImageRequested(
                request_id=self._request_id,
                time=self._time,
                index=self.images,
                row=row.number,
                position=position,
                serial=row.serial,
                product_name=row.product_name,
                input_url=url,
                cells=row.cells if position == 0 else None,
                quality=self._quality,
            )
            self._pending.append(await self._log.enqueue(event))
            self.images += 1
        while len(self._pending) > EVENTS_IN_FLIGHT or (self._pending and self._pending[0].done()):
            self._note(await self._pending.popleft())

    async def finish(self) -> None:
        while self._pending:
            self._note(await self._pending.popleft())

    def _note(self, written: RecordMetadata) -> None:
        first, last = self.offsets.get(written.partition, (written.offset, written.offset))
        self.offsets[written.partition] = (min(first, written.offset), max(last, written.offset))


def routes() -> list[web.RouteDef]:
    """The upload under its own name and those of the systems whose clients work unchanged."""
    return [web.post(path, upload) for path in ("/api/upload", "/api/images/upload", "/upload")]
