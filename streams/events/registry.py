"""All event classes by name, upcasters, and the decoding of records."""

import re
from collections.abc import Callable
from typing import Any

import orjson
from pydantic import ValidationError

from streams.events.base import TYPE_PREFIX, Event, UnreadableEvent
from streams.events.images import ImageFailed, ImageProcessed, ImageRequested
from streams.events.maintenance import (
    ProgressRebuildFailed,
    ProgressRebuildRequested,
    ProgressRebuildStarted,
    ProgressRebuilt,
)
from streams.events.progress import ImagesRerequested, ImagesSettled, ProgressEvicted, RequestProjected
from streams.events.requests import (
    OutputCsvRequested,
    RequestCancelled,
    RequestCompleted,
    RequestCreated,
    RequestExpired,
    RequestForgotten,
    RequestRetried,
    RequestStopped,
)
from streams.events.webhooks import WebhookAttempted, WebhookDelivered, WebhookFailed, WebhookRedeliveryRequested

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
    RequestExpired,
    RequestForgotten,
    WebhookAttempted,
    WebhookDelivered,
    WebhookFailed,
    WebhookRedeliveryRequested,
    ImagesRerequested,
    ImagesSettled,
    RequestProjected,
    ProgressEvicted,
    ProgressRebuildRequested,
    ProgressRebuildStarted,
    ProgressRebuilt,
    ProgressRebuildFailed,
)

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]

# (event name, old version) → function from that version's data to the next version's data.
UPCASTERS: dict[tuple[str, int], Upcaster] = {}

_CLASS_OF = {cls.__name__: cls for cls in EVENT_CLASSES}

_TYPE = re.compile(re.escape(TYPE_PREFIX) + r"([A-Za-z]+)\.v([1-9][0-9]{0,5})")


def decode(value: bytes | None) -> Event:
    """Read one record's value, of this version or any older one.

    Raises UnreadableEvent for everything else: no value, not JSON, not a CloudEvent of shrinkstream, an unknown
    type, a newer version, invalid data.
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
    """The event, or None for an undecodable record: the agents move it to the dead-letter topic."""
    try:
        return decode(value)
    except UnreadableEvent:
        return None
