"""Atomic upload: receive the CSV into a spool file, validate all of it, then publish its events.

RequestCreated is published after the brokers have acknowledged every ImageRequested. A crash before that leaves orphan
images without a visible request; a crash after it leaves a request that completes.
"""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from errno import ENOSPC
from functools import partial
from http import HTTPStatus
from itertools import islice
from pathlib import Path
from typing import Annotated, BinaryIO, Literal, TypeVar, get_args
from uuid import uuid4

import orjson
import structlog
from aiohttp import BodyPartReader, ClientPayloadError, MultipartReader, web
from aiohttp.http_exceptions import HttpProcessingError
from aiokafka.errors import KafkaError
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, WithJsonSchema
from pydantic.alias_generators import to_camel

from api.context import CONTEXT, Context
from api.contract.models import Accepted
from api.contract.routes import Parameter, Response, Route
from api.http.api_keys import OWNER
from api.http.paging import json_response
from api.http.problems import Problem, ProblemCode, RowProblem, unavailable
from api.http.trace_header import TRACEPARENT, context_of
from api.uploads.csv.reader import CheckedCsv, CsvRejected, Row, check_in_steps, next_step, read_rows
from api.uploads.idempotency import Claim, IdempotencyKeys
from api.uploads.options import ImageOptions
from infra.cassandra.session import CassandraUnavailableError
from infra.disk import free_bytes
from infra.observability import metrics
from infra.outbound.reasons import ForbiddenUrl
from infra.outbound.urls import check_url
from infra.settings import Settings
from infra.spool import spool_file
from streams.events.base import ImageFormat, Quality, WebhookKind, utc_now
from streams.events.images import ImageRequested
from streams.events.requests import RequestCreated
from streams.events.trace_context import trace_id_of
from streams.log.producer import EventBatches
from streams.progress.view import StaleViewError

logger = structlog.get_logger(__name__)

RECEIVE_TIMEOUT = 900.0  # seconds for a whole upload
READ_TIMEOUT = 30.0  # seconds without data from the client
WRITE_BUFFER = 256 * 1024
MAX_FIELD_BYTES = 8 * 1024
MAX_FIELDS = 100
MAX_IDEMPOTENCY_KEY_CHARS = 255
EVENTS_PER_STEP = 1000
CSV_THREADS = 2
DISK_FULL_RETRY_AFTER = "60"

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
# Empty: a web form field that was left blank; no receiver.
WebhookUrl = Annotated[str, WithJsonSchema({"type": "string", "anyOf": [{"format": "uri"}, {"maxLength": 0}]})]

WebhookEvents = Annotated[
    str, StringConstraints(pattern=r"^(({0})(,({0}))*)?$".format("|".join(map(re.escape, get_args(WebhookKind)))))
]

# Raised by aiohttp for a truncated form, bad headers or an unknown encoding.
_FORM_ERRORS = (ValueError, RuntimeError, HttpProcessingError)
T = TypeVar("T")

CONTENT_ENCODINGS = ("gzip", "deflate", "identity")
WEBHOOK_FIELDS = ("webhookUrl", "webhook_url")
WEBHOOK_EVENTS = "webhookEvents"
FIELDS = (*WEBHOOK_FIELDS, WEBHOOK_EVENTS, "format", "quality")


@dataclass
class Received:
    """A received upload: the spool file and the form fields."""

    path: Path
    traceparent: str | None
    sha256: str = ""
    size: int = 0
    content_type: str | None = None
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


class Report(BaseModel):
    """Validation report of an upload; ``rows`` and ``images`` count all that were read, valid or not."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    valid: bool = Field(description="whether the same upload without `validate_only` would be accepted")
    rows: int
    images: int
    detail: str = Field(description="human-readable summary")
    errors: list[RowProblem] = Field(description="errors of the first 100 bad rows")
    error_count: int = Field(description="number of bad rows")


class UploadForm(BaseModel):
    """The form of an upload. The one part with a file name is the CSV, whatever the part's name."""

    file: bytes = Field(description="the CSV")
    webhookUrl: WebhookUrl = Field("", description="receives the completion webhook; also `webhook_url`")
    webhookEvents: WebhookEvents = Field(
        "", description="additional webhook events, comma-separated: image.processed, image.failed"
    )
    format: ImageFormat | Literal[""] = Field("", description="output format; empty: the format of each input image")
    quality: Quality | Literal[""] = Field("", description="empty: the default of the settings")


async def upload(request: web.Request) -> web.Response:
    """``POST /api/upload`` and its aliases."""
    validate_only = _flag(request, "validate_only")
    idempotency_key = _idempotency_key(request)
    with request.app[UPLOADS].admit():
        return await (_validate(request) if validate_only else _accept(request, idempotency_key))


def _flag(request: web.Request, name: str) -> bool:
    match request.query.get(name, "false").lower():
        case "true" | "1":
            return True
        case "false" | "0":
            return False
    raise Problem(ProblemCode.BAD_PARAMETER, f"{name} must be true or false")


class UploadLimiter:
    """Bounds the uploads in flight, and so their memory; runs their CPU work in a small thread pool.

    The work is pure Python and serialised by the GIL: more threads would only delay the event loop.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.count = 0
        self._threads = ThreadPoolExecutor(CSV_THREADS, thread_name_prefix="csv")

    async def run(self, step: Callable[[], T]) -> T:
        """Run a short step of one upload in the thread pool, interleaved with the steps of the other uploads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, step)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Count an upload while it is in flight; raise a 503 with Retry-After at the limit."""
        if self.count >= self._limit:
            raise unavailable(f"too many concurrent uploads: the limit of {self._limit} is reached")
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1


UPLOADS = web.AppKey("uploads", UploadLimiter)


async def _validate(request: web.Request) -> web.Response:
    context = request.app[CONTEXT]
    async with _receive(request, context.settings) as received:
        _checked_webhook_url(received, context)
        _checked_webhook_events(received)
        ImageOptions.of(received.fields, context.settings.quality)
        try:
            checked = await _check(received, context.settings, request.app[UPLOADS])
        except CsvRejected as rejected:
            report = Report(
                valid=False,
                rows=rejected.rows,
                images=rejected.images,
                detail=rejected.detail,
                errors=_row_problems(rejected),
                error_count=rejected.error_count,
            )
        else:
            report = Report(
                valid=True,
                rows=checked.rows,
                images=checked.images,
                detail="the file can be used as it is",
                errors=[],
                error_count=0,
            )
    return json_response(report)


async def _accept(request: web.Request, idempotency_key: str) -> web.Response:
    context = request.app[CONTEXT]
    async with _receive(request, context.settings) as received:
        webhook_url = _checked_webhook_url(received, context)
        webhook_events = _checked_webhook_events(received)
        options = ImageOptions.of(received.fields, context.settings.quality)
        try:
            checked = await _check(received, context.settings, request.app[UPLOADS])
        except CsvRejected as rejected:
            raise Problem(
                ProblemCode.CSV_REJECTED,
                rejected.detail,
                errors=_row_problems(rejected),
                errorCount=rejected.error_count,
            ) from None
        claim = await _claim(context, request[OWNER], idempotency_key, received.fingerprint)
        if claim.is_new or not await _is_request(context, claim):
            await _publish_events(
                context,
                request.app[UPLOADS],
                claim,
                received,
                checked,
                request[OWNER],
                webhook_url,
                webhook_events,
                options,
            )
    return _accepted(claim.request_id)


def _accepted(request_id: str) -> web.Response:
    accepted = Accepted(message="The file was accepted and its images are being processed.", request_id=request_id)
    return json_response(accepted, status=HTTPStatus.ACCEPTED, headers={"Location": f"/api/status/{request_id}"})


@asynccontextmanager
async def _receive(request: web.Request, settings: Settings) -> AsyncIterator[Received]:
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
                f"upload timed out: no data for {READ_TIMEOUT:g} s, or more than {RECEIVE_TIMEOUT:g} s in total",
            ) from None
        except OSError as error:
            logger.error("writing spool file failed", path=file.name, error=str(error))
            raise Problem(
                ProblemCode.NO_ROOM,
                f"cannot spool the upload: the server's disk is full; retry after {DISK_FULL_RETRY_AFTER} s",
                headers={"Retry-After": DISK_FULL_RETRY_AFTER},
            ) from None
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
        while (part := await _with_timeout(form.next())) is not None:
            if not isinstance(part, BodyPartReader):
                raise _bad_form("it has a nested form")
            # The published clients name the part `file`, `csv` or `csvFile`: any part with a file name is the CSV.
            if part.filename is not None or part.name == "file":
                if found:
                    raise _bad_form("it has more than one file")
                found = True
                received.content_type = part.headers.get("Content-Type")
                await _spool(_chunks(part), received, file, settings)
                continue
            value = await _field(part)
            if (fields := fields + 1) > MAX_FIELDS:
                raise _bad_form(f"it has more than {MAX_FIELDS} fields")
            if part.name in FIELDS:
                received.add_field(part.name, value)
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


async def _with_timeout(read: Awaitable[T]) -> T:
    """Await a read from the client. Raises TimeoutError after ``READ_TIMEOUT``."""
    async with asyncio.timeout(READ_TIMEOUT):
        return await read


async def _field(part: BodyPartReader) -> str:
    value = bytearray()
    while chunk := await _with_timeout(part.read_chunk(MAX_FIELD_BYTES)):
        value += chunk
        if len(value) > MAX_FIELD_BYTES:
            raise Problem(
                ProblemCode.FIELD_TOO_LARGE,
                f"the form field {part.name!r} has more than {MAX_FIELD_BYTES} bytes",
            )
    return value.decode(errors="replace").strip()


async def _spool(chunks: AsyncIterator[bytes], received: Received, file: BinaryIO, settings: Settings) -> None:
    digest = hashlib.sha256()
    buffer = bytearray()
    iterator = aiter(chunks)
    while True:
        try:
            chunk = await _with_timeout(anext(iterator))
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


def _too_large(limit: int) -> Problem:
    return Problem(
        ProblemCode.TOO_LARGE,
        f"a CSV may have at most {limit:,} bytes",
        limit=limit,
    )


def _checked_webhook_url(received: Received, context: Context) -> str | None:
    """The first webhook URL of the upload. Raises Problem (422) if any of them is invalid or forbidden."""
    urls = [url for name in WEBHOOK_FIELDS for url in received.fields.get(name, ())]
    try:
        for url in urls:
            check_url(url, context.fetch_allow)
    except ForbiddenUrl as error:
        raise Problem(ProblemCode.BAD_WEBHOOK_URL, f"invalid webhookUrl: {error.detail}") from None
    return urls[0] if urls else context.settings.webhook_url


def _checked_webhook_events(received: Received) -> tuple[WebhookKind, ...]:
    """The webhook events to send in addition to ``request.completed``, which is always sent."""
    given = ",".join(received.fields.get(WEBHOOK_EVENTS, ()))
    names = {name.strip() for name in given.split(",")} - {""}
    if unknown := sorted(names - set(get_args(WebhookKind))):
        raise Problem(
            ProblemCode.BAD_WEBHOOK_EVENTS,
            f"unknown webhook event {unknown[0][:100]!r}: use {', '.join(get_args(WebhookKind))}",
        )
    return tuple(kind for kind in get_args(WebhookKind) if kind in names and kind != "request.completed")


async def _check(received: Received, settings: Settings, uploads: UploadLimiter) -> CheckedCsv:
    """Validate the whole CSV. Raises CsvRejected."""
    steps = check_in_steps(
        received.path, max_images=settings.max_images_per_request, content_type=received.content_type
    )
    while True:
        checked = await uploads.run(partial(next_step, steps))
        if checked is not None:
            return checked


def _row_problems(rejected: CsvRejected) -> list[RowProblem]:
    return [
        RowProblem(row=error.row, column=error.column, code=error.code, message=error.message)
        for error in rejected.errors
    ]


def _idempotency_key(request: web.Request) -> str:
    key = request.headers.get("Idempotency-Key", "").strip()
    if len(key) > MAX_IDEMPOTENCY_KEY_CHARS:
        raise Problem(
            ProblemCode.BAD_IDEMPOTENCY_KEY,
            f"the Idempotency-Key is longer than {MAX_IDEMPOTENCY_KEY_CHARS} characters",
        )
    if not (key.isascii() and key.isprintable()):
        raise Problem(
            ProblemCode.BAD_IDEMPOTENCY_KEY, "the Idempotency-Key has characters that are not printable ASCII"
        )
    return key


async def _claim(context: Context, owner: str, key: str, fingerprint: str) -> Claim:
    new = Claim(str(uuid4()), fingerprint, utc_now(), is_new=True)
    if not key:
        return new
    try:
        claim = await IdempotencyKeys(context.session).claim(owner, key, new)
    except CassandraUnavailableError:
        raise unavailable("cannot check the Idempotency-Key: Cassandra is unavailable") from None
    if claim.fingerprint != fingerprint:
        raise Problem(
            ProblemCode.IDEMPOTENCY_KEY_REUSED,
            "this Idempotency-Key was used with another file or other fields in the last 24 hours",
        )
    return claim


async def _is_request(context: Context, claim: Claim) -> bool:
    """Whether the upload that made the claim has published its events."""
    try:
        return await context.status(claim.request_id) is not None
    except (StaleViewError, CassandraUnavailableError):
        raise unavailable(
            "cannot look up the earlier upload with this Idempotency-Key: Kafka or Cassandra is unavailable"
        ) from None


async def _publish_events(
    context: Context,
    uploads: UploadLimiter,
    claim: Claim,
    received: Received,
    checked: CheckedCsv,
    owner: str,
    webhook_url: str | None,
    webhook_events: tuple[WebhookKind, ...],
    options: ImageOptions,
) -> None:
    bulk = checked.images > context.settings.express_images
    rows = read_rows(received.path, checked)
    image_requests = _image_requests(rows, claim, owner, options, received.traceparent, bulk=bulk)
    try:
        batches = await context.events.start_batches()
        while await uploads.run(partial(_add_next, batches, image_requests)):
            await batches.send()
        await context.events.append(
            RequestCreated(
                request_id=claim.request_id,
                time=claim.created_at,
                total=checked.images,
                rows=checked.rows,
                header=checked.header,
                body_sha256=received.sha256,
                owner=owner,
                webhook_url=webhook_url,
                webhook_events=webhook_events,
                quality=options.quality,
                format=options.format,
                image_offsets=await batches.finish(),
                traceparent=received.traceparent,
            )
        )
    except KafkaError as error:
        logger.warning("publishing upload failed", request_id=claim.request_id, error=str(error))
        raise unavailable("cannot publish the upload's events: Kafka is unavailable") from None
    metrics.REQUESTS_CREATED.inc()
    metrics.IMAGES_REQUESTED.inc(checked.images)
    logger.info(
        "request created",
        request_id=claim.request_id,
        trace_id=trace_id_of(claim.request_id, received.traceparent),
        rows=checked.rows,
        images=checked.images,
    )


def _image_requests(
    rows: Iterator[Row], claim: Claim, owner: str, options: ImageOptions, traceparent: str | None, *, bulk: bool
) -> Iterator[ImageRequested]:
    index = 0
    for row in rows:
        for position, url in enumerate(row.urls):
            yield ImageRequested(
                request_id=claim.request_id,
                time=claim.created_at,
                index=index,
                row=row.number,
                position=position,
                serial=row.serial,
                product_name=row.product_name,
                input_url=url,
                cells=row.cells if position == 0 else None,
                quality=options.quality,
                format=options.format,
                bulk=bulk,
                owner=owner,
                traceparent=traceparent,
            )
            index += 1


def _add_next(batches: EventBatches, events: Iterator[ImageRequested]) -> int:
    """Add the next events to the batches, in a thread; returns their number."""
    count = 0
    for event in islice(events, EVENTS_PER_STEP):
        batches.add(event)
        count += 1
    return count


def routes() -> list[Route]:
    """The upload route and its aliases, which clients of other systems use unchanged."""
    return [
        Route(
            "POST",
            "/api/upload",
            upload,
            tag="Requests",
            summary="Upload a CSV of image URLs",
            description="The CSV has the columns `S. No.`, `Product Name` and `Input Image URLs`, in any order; extra"
            " columns are allowed. A cell holds one or more URLs, separated by commas. Send it as the file of a form,"
            f" or as the body ({', '.join(f'`{name}`' for name in sorted(RAW_TYPES))}), optionally compressed with"
            " gzip. One bad row rejects the whole CSV; nothing of it is processed then.",
            parameters=(
                Parameter(
                    "validate_only", "query", bool, "validate only and answer with a report (200); publish no events"
                ),
                Parameter(
                    "webhookUrl",
                    "query",
                    WebhookUrl,
                    "receives the completion webhook; also `webhook_url`; also accepted as a form field",
                    "https://shop.example/hook",
                ),
                Parameter(
                    WEBHOOK_EVENTS,
                    "query",
                    WebhookEvents,
                    "additional webhook events, comma-separated; also accepted as a form field",
                    "image.processed,image.failed",
                ),
                Parameter(
                    "format",
                    "query",
                    ImageFormat,
                    "output format, default: the format of each input image; also accepted as a form field",
                ),
                Parameter(
                    "quality", "query", Quality, "1 to 100, default: from the settings; also accepted as a form field"
                ),
                Parameter(
                    "Idempotency-Key",
                    "header",
                    Annotated[str, StringConstraints(max_length=MAX_IDEMPOTENCY_KEY_CHARS)],
                    "makes an upload safe to retry: the same key, file and fields within 24 hours return the first"
                    " request's id",
                    "order-4711",
                ),
                TRACEPARENT,
            ),
            body={"multipart/form-data": UploadForm, "text/csv": str},
            responses={
                HTTPStatus.ACCEPTED: Response(
                    "The upload was accepted", {"application/json": Accepted}, {"Location": "URL of the status"}
                ),
                HTTPStatus.OK: Response("With `validate_only`: the validation report", {"application/json": Report}),
            },
            problems={
                HTTPStatus.BAD_REQUEST: "The form or the compressed body is malformed or truncated.",
                HTTPStatus.REQUEST_TIMEOUT: "The upload timed out.",
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The CSV is too large, compressed or decompressed.",
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "The body is neither a form nor a CSV.",
                HTTPStatus.UNPROCESSABLE_ENTITY: "The CSV is invalid, with each bad row in `errors`; or a parameter is"
                " invalid, or the Idempotency-Key was used for another upload.",
                HTTPStatus.INSUFFICIENT_STORAGE: "The API's disk is full; retry after `Retry-After` seconds.",
                HTTPStatus.SERVICE_UNAVAILABLE: "Kafka or Cassandra is unavailable, or there are too many concurrent"
                " uploads; retry after `Retry-After` seconds.",
            },
            aliases=("/api/images/upload", "/upload"),
        )
    ]
