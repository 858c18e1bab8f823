"""The vocabulary: what can happen to a request, an image and a webhook.

Each event is one small class that knows its topic, its key and its id. On the wire an event is a CloudEvents
1.0 JSON object in structured mode (https://github.com/cloudevents/spec, HTTP and Kafka bindings); nothing
outside this module knows that. An id is derived from what happened and to what, never from when: the same
fact written twice has the same id, and a reader drops the repeat by it.
"""

import hashlib
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal, Self
from uuid import NAMESPACE_URL, uuid5

import orjson
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from streams.events import trace_context
from streams.events.lanes import partition_of_image

CONTENT_TYPE = "application/cloudevents+json"
HEADERS: tuple[tuple[str, bytes], ...] = (("content-type", CONTENT_TYPE.encode()),)
SOURCE = "/shrinkstream"
TYPE_PREFIX = "shrinkstream."
NAMESPACE = uuid5(NAMESPACE_URL, "https://shrinkstream.example/events")


def utc_now() -> datetime:
    """The current time in UTC, in whole milliseconds, which is what every event carries."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def _uuid5(name: str) -> str:
    """``str(uuid5(NAMESPACE, name))`` (RFC 9562, 5.5) in a third of the time: every event of an upload has one."""
    digest = bytearray(hashlib.sha1(NAMESPACE.bytes + name.encode(), usedforsecurity=False).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    text = digest.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


class UnreadableEvent(Exception):
    """A record is not an event that this version can read; the message says why."""


# An event is read only if everything it tells can be stored where it is told on: Cassandra's int, bigint and keys,
# the fields of a progress chunk. Else it would be the same readers' crash at each delivery.
_REQUEST_ID = r"^[A-Za-z0-9_-]{1,64}$"  # no slash: keys and subjects have one after it
RequestId = Annotated[str, Field(pattern=_REQUEST_ID)]
ProductName = Annotated[str, Field(min_length=1, max_length=1000)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Run = Annotated[int, Field(ge=0, lt=2**16)]
Owner = Annotated[str, Field(max_length=1000)]
Url = Annotated[str, Field(max_length=10_000)]
Milliseconds = Annotated[int, Field(ge=0, lt=2**29)]  # the three of an image are added up
Offset = Annotated[int, Field(ge=0, lt=2**63)]
Offsets = dict[Annotated[int, Field(ge=0, lt=2**31)], tuple[Offset, Offset]]
Bytes = Annotated[int, Field(ge=0, lt=2**40, description="bytes of one image")]
Quality = Annotated[int, Field(ge=1, le=100)]
ImageFormat = Literal["jpeg", "png", "webp", "avif"]
ByteSum = Annotated[int, Field(ge=0, lt=2**63, description="bytes of all images")]
WebhookId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
WebhookKind = Literal["request.completed", "image.processed", "image.failed"]
Time = Annotated[
    AwareDatetime,
    Field(ge=datetime(1970, 1, 1, tzinfo=UTC), lt=datetime(9999, 1, 1, tzinfo=UTC)),
    AfterValidator(lambda time: time.astimezone(UTC)),
]


def is_request_id(text: str) -> bool:
    return re.fullmatch(_REQUEST_ID, text) is not None


TopicName = Literal["requests", "image_requests", "image_results", "output_requests", "progress_tasks", "webhooks"]


class Event(BaseModel):
    """Base of all events. ``time`` is when it happened; the rest is the event's data."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True, extra="ignore")

    topic: ClassVar[TopicName]
    version: ClassVar[int] = 1

    request_id: RequestId
    time: Time = Field(default_factory=utc_now, exclude=True)
    traceparent: Annotated[str, Field(pattern=trace_context.PATTERN)] | None = Field(
        None, description="the caller's `traceparent` (W3C Trace Context), if it sent one: the event is of its trace"
    )

    @property
    def subject(self) -> str:
        return self.request_id

    @property
    def key(self) -> bytes:
        return self.request_id.encode()

    @property
    def occurrence(self) -> str:
        """What tells two events of one type and subject apart: part of the id."""
        return ""

    @property
    def id(self) -> str:
        return self.id_of(self.subject, self.occurrence)

    @classmethod
    def id_of(cls, subject: str, occurrence: str) -> str:
        """The id of the event of this type about ``subject`` that is told apart by ``occurrence``."""
        return _uuid5(f"{cls.__name__}/{subject}/{occurrence}")

    @property
    def trace_id(self) -> str:
        return trace_context.trace_id_of(self.request_id, self.traceparent)

    @property
    def own_traceparent(self) -> str:
        """The trace context that goes with the record: the event as the parent of whatever follows from it."""
        return trace_context.traceparent_of(self.request_id, self.traceparent, self.id)

    def log_fields(self) -> dict[str, str]:
        """What a log line says of the event that it is about."""
        return {"request_id": self.request_id, "event_id": self.id, "trace_id": self.trace_id}

    def partition_among(self, partitions: int) -> int | None:
        """The partition of the topic, of so many, that the event goes to; None: that of its key."""
        return None

    @classmethod
    def event_type(cls) -> str:
        return f"{TYPE_PREFIX}{cls.__name__}.v{cls.version}"

    def encode(self) -> bytes:
        return self._encode(self.id)

    def encode_with_context(self) -> tuple[bytes, bytes]:
        """What ``encode`` and ``own_traceparent`` say, for the work of one: the id is the most of it."""
        event_id = self.id
        context = trace_context.traceparent_of(self.request_id, self.traceparent, event_id)
        return self._encode(event_id), context.encode()

    def _encode(self, event_id: str) -> bytes:
        return orjson.dumps(
            {
                "specversion": "1.0",
                "id": event_id,
                "source": SOURCE,
                "type": self.event_type(),
                "subject": self.subject,
                "time": self.time,
                "datacontenttype": "application/json",
                "data": self.model_dump(by_alias=True, exclude_none=True),
            },
            option=orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS,
        )

    @classmethod
    def envelope_schema(cls, data: dict[str, Any]) -> dict[str, Any]:
        """The JSON schema of what ``encode`` writes, around ``data``, the schema of the event's own fields."""
        return {
            "type": "object",
            "description": cls.__doc__,
            "required": ["specversion", "id", "source", "type", "subject", "time", "datacontenttype", "data"],
            "properties": {
                "specversion": {"const": "1.0"},
                "id": {
                    "type": "string",
                    "format": "uuid",
                    "description": "the same whenever the same fact is written again: drop repeats by it",
                },
                "source": {"const": SOURCE},
                "type": {"const": cls.event_type()},
                "subject": {"type": "string", "description": "the request id; for an image, request-id/image-index"},
                "time": {"type": "string", "format": "date-time", "description": "when it happened, in UTC"},
                "datacontenttype": {"const": "application/json"},
                "data": data,
            },
        }

    @classmethod
    def from_data(cls, data: dict[str, Any], time: datetime) -> Self:
        return cls.model_validate({**data, "time": time})


class _ImageEvent(Event):
    """An event about one image: the ``index``-th (from 0) URL of its request, in the order of the CSV."""

    index: Annotated[int, Field(ge=0, lt=2**24)]
    attempt: Annotated[Run, Field(description="0, and one more at each retry of the failed images")] = 0

    @property
    def subject(self) -> str:
        return f"{self.request_id}/{self.index}"

    @property
    def occurrence(self) -> str:
        return str(self.attempt)


class RequestCreated(Event):
    """A CSV was accepted. Written after the last of its ImageRequested: before it, the request does not exist."""

    topic = "requests"

    total: Annotated[int, Field(ge=1, le=2**24, description="number of images")]
    rows: Annotated[int, Field(ge=1, le=2**24, description="number of CSV rows")]
    header: tuple[str, ...] = Field(description="the header cells of the uploaded CSV")
    body_sha256: str = Field(description="hash of the uploaded bytes, for Idempotency-Key")
    owner: Owner = Field("", description="name of the API key that made it; empty without keys")
    webhook_url: Url | None = None
    quality: Quality = Field(50, description="quality of its images")
    format: ImageFormat | None = Field(None, description="format of its images; absent: that of each input")
    webhook_events: tuple[WebhookKind, ...] = Field((), description="what the receiver is told beside the completion")
    image_offsets: Offsets = Field(
        default_factory=dict,
        description="partition of the image-requests topic → first and last offset that hold this request's images",
    )


class ImageRequested(_ImageEvent):
    """An image waits to be fetched and compressed."""

    topic = "image_requests"

    row: Annotated[Count, Field(description="CSV row, from 0, header not counted")]
    position: Annotated[Count, Field(description="place of the URL in its row, from 0")]
    serial: str
    product_name: ProductName
    input_url: str
    cells: tuple[str, ...] | None = Field(None, description="all cells of the row, with its first image only")
    quality: Quality = 50
    format: ImageFormat | None = Field(None, description="format to make; absent: that of the input")
    bulk: bool = Field(False, description="of a large request, which leaves some partitions to small ones")
    owner: Owner = Field("", description="as in RequestCreated")

    @property
    def key(self) -> bytes:
        return self.subject.encode()

    def partition_among(self, partitions: int) -> int:
        return partition_of_image(self.key, bulk=self.bulk, partitions=partitions)


class _ImageResult(_ImageEvent):
    """What came of one ImageRequested, with what it said of the image, so that a reader needs no join."""

    topic = "image_results"

    row: Count
    position: Count
    serial: str
    product_name: ProductName
    input_url: str
    cells: tuple[str, ...] | None = None
    owner: Owner = ""
    requested_at: Time = Field(description="when the image was requested")

    @classmethod
    def of(cls, request: ImageRequested, **outcome: Any) -> Self:
        """The result of ``request``; ``outcome`` has the fields that only the result knows."""
        return cls(
            request_id=request.request_id,
            index=request.index,
            attempt=request.attempt,
            row=request.row,
            position=request.position,
            serial=request.serial,
            product_name=request.product_name,
            input_url=request.input_url,
            cells=request.cells,
            owner=request.owner,
            traceparent=request.traceparent,
            requested_at=request.time,
            **outcome,
        )


class ImageProcessed(_ImageResult):
    """An image was compressed and stored."""

    output_url: str
    output_path: str = Field(description="key in the storage")
    input_bytes: Bytes
    output_bytes: Bytes
    format: str = Field(description="format of the stored image: jpeg, png, webp, gif, tiff or avif")
    width: Count
    height: Count
    sha256: str = Field(description="hash of the stored bytes")
    kept_original: bool = Field(False, description="compressing did not make it smaller, so it is stored as it was")
    pages: Count | None = Field(None, description="pages of the input, if only its first one was made")
    truncated: bool = Field(False, description="the input ends too early; what is missing is transparent or white")
    fetch_ms: Milliseconds = 0
    shrink_ms: Milliseconds = 0
    store_ms: Milliseconds = 0


class ImageFailed(_ImageResult):
    """An image can't be processed; the rest of its request goes on."""

    reason: str = Field(description="stable code")
    detail: str = Field("", description="the same for people")


class _RequestSummary(Event):
    """The sums over a request's images, and what a reader needs of its RequestCreated."""

    run: Annotated[Run, Field(description="0, and one more after each retry of the failed images")] = 0
    total: Count
    succeeded: Count
    failed: Count
    input_bytes: ByteSum
    output_bytes: ByteSum
    created_at: Time
    webhook_url: Url | None = None
    owner: Owner = ""

    @property
    def occurrence(self) -> str:
        return str(self.run)


class OutputCsvRequested(_RequestSummary):
    """Every image of a request has its result: its output CSV is to be written."""

    topic = "output_requests"

    header: tuple[str, ...]


class RequestCompleted(_RequestSummary):
    """Every image has its result and the output CSV can be downloaded."""

    topic = "requests"

    output_csv_url: str
    output_csv_path: str = Field(description="key in the storage")


class RequestCancelled(Event):
    """Somebody wants no more of a request's images. A run that completes all the same is complete."""

    topic = "requests"

    run: Annotated[Run, Field(description="the run that is stopped")] = 0

    @property
    def occurrence(self) -> str:
        return str(self.run)


class RequestRetried(Event):
    """Every image of a request that has not succeeded is to be processed again."""

    topic = "requests"

    run: Annotated[Run, Field(ge=1, description="the run that begins, which its images bear as their attempt")]
    created_at: Time = Field(description="when the request was created: what is about it is on the log from then on")

    @property
    def occurrence(self) -> str:
        return str(self.run)


class RequestStopped(_RequestSummary):
    """What the images of a cancelled request came to, when nothing of it is under way any more."""

    topic = "requests"


class RequestFilesRemoved(Event):
    """A finished request is older than ``RETENTION_DAYS``: its images and output CSVs are removed when this is read.

    That is final: no retry is accepted from some time before it, and none that comes after it counts.
    """

    topic = "requests"


class _WebhookEvent(Event):
    """An event about telling a receiver something; ``webhook_id`` is the message's, stable over all attempts."""

    topic = "webhooks"

    webhook_id: WebhookId
    kind: WebhookKind = Field("request.completed", description="type of the message")
    run: Run = Field(0, description="the run of the request that the message is about")

    @property
    def occurrence(self) -> str:
        return self.webhook_id


class WebhookAttempted(_WebhookEvent):
    """One POST was made, whatever came of it."""

    attempt: Annotated[int, Field(ge=1, lt=2**31)]
    status: Annotated[int, Field(ge=0, lt=1000)] | None = Field(None, description="HTTP status, if there was an answer")
    milliseconds: Count
    reason: str | None = Field(None, description="why it is no success; absent on success")
    next_attempt_at: Time | None = Field(None, description="when the next attempt is due, if there is to be one")
    last: bool = Field(False, description="it is no success, and no further attempt will be made")
    after_attempt: Count = Field(0, description="number of attempts before the redelivery that it belongs to, if any")

    @property
    def occurrence(self) -> str:
        return f"{self.webhook_id}/{self.attempt}"


class _WebhookOutcome(_WebhookEvent):
    attempts: Count
    after_attempt: Count = Field(0, description="as in WebhookAttempted: each redelivery has an outcome of its own")

    @property
    def occurrence(self) -> str:
        return f"{self.webhook_id}/{self.after_attempt}" if self.after_attempt else self.webhook_id


class WebhookDelivered(_WebhookOutcome):
    """The receiver confirmed."""


class WebhookFailed(_WebhookOutcome):
    """No further attempt will be made, unless somebody asks for it."""

    reason: str


class WebhookRedeliveryRequested(_WebhookEvent):
    """Somebody wants a message sent again, at once and with the whole schedule of attempts before it."""

    after_attempt: Count = Field(description="number of attempts made before: asked for twice, it is the same wish")

    @property
    def occurrence(self) -> str:
        return f"{self.webhook_id}/{self.after_attempt}"


class ImagesRequestedAgain(Event):
    """Images that have no result that counts were asked for again: for a retry, or because nothing came of them."""

    topic = "progress_tasks"

    run: Annotated[Run, Field(description="the run that they are asked for in")] = 0
    heal: Annotated[
        Count, Field(description="0: the retry itself; else how often the run has been helped, this time included")
    ]
    missing: Count
    image_offsets: Offsets = Field(description="as in RequestCreated, the new ones included")

    @property
    def occurrence(self) -> str:
        return _of_run(self.run, str(self.heal))


class ImagesSettled(Event):
    """Some consecutive images of a request all have their result, and its receiver wants to hear of them."""

    topic = "progress_tasks"

    run: Run
    first: Annotated[int, Field(ge=0, lt=2**24, description="index of the first image")]
    count: Annotated[int, Field(ge=1, le=1000)]
    created_at: Time = Field(description="when the request was made")
    webhook_url: Url
    webhook_events: tuple[WebhookKind, ...]

    @property
    def occurrence(self) -> str:
        return f"{self.run}/{self.first}"


class RequestRecorded(Event):
    """The history has the completed request: its status can be answered from there."""

    topic = "progress_tasks"

    run: Run

    @property
    def occurrence(self) -> str:
        return str(self.run)


class RequestExpired(Event):
    """A finished request leaves the progress table; the second time, the mark that it was there leaves too.

    Or results leave it that no request is there for, as of an upload that was cut off.
    """

    topic = "progress_tasks"

    stage: Literal["done", "forgotten", "abandoned"]
    run: Annotated[Run, Field(description="the run that it leaves after: a later one keeps it there")] = 0
    images: Annotated[int, Field(ge=1, le=2**25)] | None = Field(
        None, description="of abandoned results, those of images with a lower index than that leave"
    )

    @property
    def occurrence(self) -> str:
        return _of_run(self.run, self.stage)


def _of_run(run: int, what: str) -> str:
    # As it was before there were runs, so that the ids of old events stay.
    return f"{run}/{what}" if run else what


class ProgressRebuildRequested(Event):
    """The progress worker of a partition is to fold the log anew: all of it, or only what is about one request."""

    topic = "progress_tasks"

    rebuild_id: str
    partition: Annotated[int, Field(ge=0, lt=2**31)]
    only_request: str | None = None

    @property
    def occurrence(self) -> str:
        return f"{self.rebuild_id}/{self.partition}"


class ProgressRebuilt(Event):
    """A partition of the progress table was folded anew."""

    topic = "progress_tasks"

    rebuild_id: str
    partition: Annotated[int, Field(ge=0, lt=2**31)]
    events: int = Field(description="events read")
    changed: int = Field(description="records of the table that were other than what the log says")
    seconds: float

    @property
    def occurrence(self) -> str:
        return f"{self.rebuild_id}/{self.partition}"


EVENT_CLASSES: tuple[type[Event], ...] = (
    RequestCreated,
    ImageRequested,
    ImageProcessed,
    ImageFailed,
    OutputCsvRequested,
    RequestCompleted,
    RequestCancelled,
    RequestRetried,
    RequestStopped,
    RequestFilesRemoved,
    WebhookAttempted,
    WebhookDelivered,
    WebhookFailed,
    WebhookRedeliveryRequested,
    ImagesRequestedAgain,
    ImagesSettled,
    RequestRecorded,
    RequestExpired,
    ProgressRebuildRequested,
    ProgressRebuilt,
)

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]

# (event name, old version) → function from that version's data to the next version's data.
UPCASTERS: dict[tuple[str, int], Upcaster] = {}

_CLASS_OF = {cls.__name__: cls for cls in EVENT_CLASSES}
_TYPE = re.compile(re.escape(TYPE_PREFIX) + r"([A-Za-z]+)\.v([1-9][0-9]{0,5})")


def decode(value: bytes | None) -> Event:
    """Read one record's value, of this version or any older one.

    Raises UnreadableEvent for everything else: no value, not JSON, not a CloudEvent of ours, an unknown
    type, a newer version, wrong data.
    """
    if value is None:
        raise UnreadableEvent("the record has no value")
    try:
        envelope = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise UnreadableEvent(f"not JSON: {error}") from None
    if not isinstance(envelope, dict) or envelope.get("specversion") != "1.0":
        raise UnreadableEvent("not a CloudEvents 1.0 object")
    type_name = envelope.get("type")
    data = envelope.get("data")
    if not isinstance(type_name, str) or not isinstance(data, dict):
        raise UnreadableEvent("type or data is missing")
    match = _TYPE.fullmatch(type_name)
    if match is None or match[1] not in _CLASS_OF:
        raise UnreadableEvent(f"unknown type {type_name[:100]!r}")
    name, version = match[1], int(match[2])
    cls = _CLASS_OF[name]
    if version > cls.version:
        raise UnreadableEvent(f"{type_name} is newer than this program, which reads up to v{cls.version}")
    while version < cls.version:
        upcast = UPCASTERS.get((name, version))
        if upcast is None:
            raise UnreadableEvent(f"no upcaster from {type_name}")
        try:
            data = upcast(data)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise UnreadableEvent(f"{type_name}: its data is not that of v{version}: {error!r}") from None
        version += 1
    try:
        return cls.from_data(data, envelope.get("time"))  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UnreadableEvent(f"{type_name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def decode_or_none(value: bytes | None) -> Event | None:
    """The same for who reads beside the agents: they put what can't be read among the dead letters, once."""
    try:
        return decode(value)
    except UnreadableEvent:
        return None
