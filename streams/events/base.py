"""Base of all events, and their CloudEvents encoding.

Each event is one small class that knows its topic, its key and its id. On the wire an event is a CloudEvents
1.0 JSON object in structured mode (https://github.com/cloudevents/spec, HTTP and Kafka bindings); nothing
outside this module knows that. An id is derived from the fact and its subject, never from the time: the same
fact written twice has the same id, by which consumers deduplicate.
"""

import hashlib
import re
import time
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal, Self
from uuid import NAMESPACE_URL, uuid5

import orjson
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from streams.events import trace_context

CONTENT_TYPE = "application/cloudevents+json"

HEADERS: tuple[tuple[str, bytes], ...] = (("content-type", CONTENT_TYPE.encode()),)

SOURCE = "/shrinkstream"

TYPE_PREFIX = "shrinkstream."

NAMESPACE = uuid5(NAMESPACE_URL, "https://shrinkstream.example/events")


def utc_now() -> datetime:
    """The current time in UTC, in whole milliseconds, which is what every event carries.

    The only clock of streams and api, by `time.time` as that of Cassandra's driver: a drill sets it for one process.
    """
    return datetime.fromtimestamp(int(time.time() * 1000) / 1000, UTC)


def _uuid5(name: str) -> str:
    """``str(uuid5(NAMESPACE, name))`` (RFC 9562, 5.5) in a third of the time: every event of an upload has one."""
    digest = bytearray(hashlib.sha1(NAMESPACE.bytes + name.encode(), usedforsecurity=False).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    text = digest.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


class UnreadableEvent(Exception):
    """A record is not an event that this version can read; the message says why."""


# Field bounds match the tightest downstream store (Cassandra's int, bigint and keys, a tally's fields): an event that
# can be decoded is never a poison pill there.
_REQUEST_ID = r"^[A-Za-z0-9_-]{1,64}$"  # no slash: keys and subjects have one after it

RequestId = Annotated[str, Field(pattern=_REQUEST_ID)]

ProductName = Annotated[str, Field(min_length=1, max_length=1000)]

Count = Annotated[int, Field(ge=0, lt=2**31)]

RUNS = 2**16

Run = Annotated[int, Field(ge=0, lt=RUNS)]

Owner = Annotated[str, Field(max_length=1000)]

Url = Annotated[str, Field(max_length=10_000)]

Milliseconds = Annotated[int, Field(ge=0, lt=2**29)]  # the three durations of an image are summed

Offset = Annotated[int, Field(ge=0, lt=2**63)]

Offsets = dict[Annotated[int, Field(ge=0, lt=2**31)], tuple[Offset, Offset]]


def widen(offsets: Offsets, partition: int, first: int, last: int) -> None:
    """Make the first and last offset of a partition include these."""
    known = offsets.get(partition, (first, last))
    offsets[partition] = (min(known[0], first), max(known[1], last))


Bytes = Annotated[int, Field(ge=0, lt=2**40, description="bytes of one image")]

Quality = Annotated[int, Field(ge=1, le=100)]

AnyQuality = Quality | Literal["auto"]

MAX_SIDE = 65_535  # the longest side (pixels) that JPEG and GIF have room for

Side = Annotated[int, Field(ge=1, le=MAX_SIDE, description="pixels")]

ImageFormat = Literal["jpeg", "png", "webp", "avif"]

ReasonCode = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,64}$")]

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


TopicName = Literal[
    "requests", "image_requests", "image_results", "output_requests", "progress", "maintenance", "webhooks"
]


class JsonModel(BaseModel):
    """Base of every model that is written as JSON: immutable, with camelCase fields."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)


class Event(JsonModel):
    """Base of all events. ``time`` is when it happened; the rest is the event's data."""

    topic: ClassVar[TopicName]
    version: ClassVar[int] = 1

    request_id: RequestId
    time: Time = Field(default_factory=utc_now, exclude=True)
    traceparent: Annotated[str, Field(pattern=trace_context.PATTERN)] | None = Field(
        None, description="the caller's `traceparent` (W3C Trace Context), if it sent one"
    )

    @property
    def subject(self) -> str:
        return self.request_id

    @property
    def key(self) -> bytes:
        return self.request_id.encode()

    @property
    def occurrence(self) -> str:
        """Part of the id: distinguishes two events of one type and subject."""
        return ""

    @property
    def id(self) -> str:
        return self.id_of(self.subject, self.occurrence)

    @classmethod
    def id_of(cls, subject: str, occurrence: str) -> str:
        """The id of the event of this type about ``subject`` with this ``occurrence``."""
        return _uuid5(f"{cls.__name__}/{subject}/{occurrence}")

    @property
    def trace_id(self) -> str:
        return trace_context.trace_id_of(self.request_id, self.traceparent)

    @property
    def own_traceparent(self) -> str:
        """The trace context of the record: the event is the parent of the events that it causes."""
        return trace_context.traceparent_of(self.request_id, self.traceparent, self.id)

    def log_fields(self) -> dict[str, str]:
        """The fields of a log line about the event."""
        return {"request_id": self.request_id, "event_id": self.id, "trace_id": self.trace_id}

    def partition_among(self, partitions: int) -> int | None:
        """The partition, among ``partitions``, that the event is written to; None: that of its key."""
        return None

    @classmethod
    def event_type(cls) -> str:
        return f"{TYPE_PREFIX}{cls.__name__}.v{cls.version}"

    def encode(self) -> bytes:
        return self._encode(self.id)

    def encode_with_context(self) -> tuple[bytes, bytes]:
        """``encode`` and ``own_traceparent`` at the cost of one: most of it is the id."""
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
                    "description": "the same if the fact is written again: deduplicate by it",
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
