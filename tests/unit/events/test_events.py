"""The wire format: what was ever written stays readable, and what can't be read is said to be so, never a crash."""

import contextlib
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Literal
from uuid import uuid5

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.events import base as events
from streams.events import registry
from streams.events.base import Event, UnreadableEvent, utc_now
from streams.events.images import ImageRequested
from streams.events.maintenance import ProgressRebuildRequested, ProgressRebuilt
from streams.events.progress import ImagesRerequested, ProgressEvicted, RequestProjected
from streams.events.registry import EVENT_CLASSES, decode
from streams.events.requests import RequestCancelled, RequestRetried, RequestStopped
from streams.events.webhooks import WebhookAttempted, WebhookDelivered, WebhookFailed, WebhookRedeliveryRequested
from tests.support.event_examples import EXAMPLES, FIRST, STORED, WEBHOOK_ID, name_of
from tests.support.examples import NOON, REQUEST_ID, completed, created, failed, output_requested, processed, requested

SAMPLES = Path(__file__).parent / "samples"
STAGES: tuple[Literal["evicted", "tombstone_dropped", "orphaned"], ...] = ("evicted", "tombstone_dropped", "orphaned")


def envelope_of(event: Event) -> dict[str, Any]:
    envelope: dict[str, Any] = orjson.loads(event.encode())
    return envelope


# --- there and back


def test_every_event_class_has_an_example_here() -> None:
    assert {type(event) for event in EXAMPLES} == set(EVENT_CLASSES)


@pytest.mark.parametrize("event", EXAMPLES, ids=name_of)
def test_event_survives_encoding_and_decoding(event: Event) -> None:
    again = decode(event.encode())
    assert again == event
    assert type(again) is type(event)
    assert (again.id, again.key, again.subject) == (event.id, event.key, event.subject)


@pytest.mark.parametrize("event", EXAMPLES, ids=name_of)
def test_decoded_event_encodes_to_same_bytes(event: Event) -> None:
    assert decode(event.encode()).encode() == event.encode()


@given(
    serial=st.text(),
    name=st.text(min_size=1),
    url=st.text(),
    cells=st.lists(st.text()),
    time=st.datetimes(
        min_value=datetime(1970, 1, 2),  # noqa: DTZ001 - hypothesis wants bounds without a zone, and draws the zone
        max_value=datetime(9998, 12, 30),  # noqa: DTZ001
        timezones=st.timezones(),
    ),
)
def test_any_text_and_any_time_survive_the_way(
    serial: str, name: str, url: str, cells: list[str], time: datetime
) -> None:
    event = requested(serial=serial, product_name=name[:1000], input_url=url, cells=tuple(cells), time=time)
    again = decode(event.encode())
    assert again == event
    # In UTC: Python calls an hour that a zone has twice unequal to every other (PEP 495).
    assert again.time == time.astimezone(UTC)


# --- what is stored


@pytest.mark.parametrize("name", sorted(STORED))
def test_a_stored_event_is_read_as_what_it_was(name: str) -> None:
    event = decode((SAMPLES / f"{name}.json").read_bytes())
    assert event == STORED[name]
    assert type(event) is type(STORED[name])


@pytest.mark.parametrize("name", sorted(STORED))
def test_stored_event_has_id_of_same_fact_today(name: str) -> None:
    assert orjson.loads((SAMPLES / f"{name}.json").read_bytes())["id"] == STORED[name].id


def test_every_version_of_every_event_has_a_stored_sample() -> None:
    ever_written = {f"{cls.__name__}.v{version}" for cls in EVENT_CLASSES for version in range(1, cls.version + 1)}
    assert ever_written == set(STORED)
    assert {path.stem for path in SAMPLES.glob("*.json")} == ever_written


# --- the envelope


@pytest.mark.parametrize("event", EXAMPLES, ids=name_of)
def test_an_event_is_a_cloudevent_of_version_1(event: Event) -> None:
    """The attributes that CloudEvents 1.0.2 requires, and the optional ones that we promise."""
    envelope = envelope_of(event)
    assert envelope["specversion"] == "1.0"
    assert envelope["id"]
    assert envelope["source"] == "/shrinkstream"
    assert envelope["type"] == f"shrinkstream.{name_of(event)}.v{event.version}"
    assert envelope["datacontenttype"] == "application/json"
    assert envelope["subject"] in (event.request_id, f"{event.request_id}/{getattr(event, 'index', None)}")
    assert isinstance(envelope["data"], dict)
    assert all(re.fullmatch("[a-z0-9]{1,20}", attribute) for attribute in envelope)


@pytest.mark.parametrize(
    "zone", [UTC, timezone(timedelta(hours=5, minutes=30)), timezone(-timedelta(hours=11))], ids=str
)
@pytest.mark.parametrize("event", EXAMPLES, ids=name_of)
def test_times_are_rfc_3339_in_utc(event: Event, zone: timezone) -> None:
    elsewhere = type(event).from_data(
        {name: value.astimezone(zone) if isinstance(value, datetime) else value for name, value in event},
        event.time.astimezone(zone),
    )
    envelope = envelope_of(elsewhere)
    times = [
        envelope["time"],
        *(envelope["data"][name] for name in ("createdAt", "requestedAt") if name in envelope["data"]),
    ]
    for text in times:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", text), text
    assert datetime.fromisoformat(envelope["time"]) == event.time


def test_the_clock_of_events_is_utc_in_whole_milliseconds() -> None:
    now = utc_now()
    assert now.utcoffset() == timedelta(0)
    assert now.microsecond % 1000 == 0
    assert abs(datetime.now(UTC) - now) < timedelta(seconds=5)


def test_events_are_keyed_by_request_except_image_requests() -> None:
    for event in EXAMPLES:
        expected = f"{REQUEST_ID}/0" if isinstance(event, ImageRequested) else event.request_id
        assert event.key == expected.encode()


# --- ids


def test_event_id_does_not_depend_on_time() -> None:
    for event in EXAMPLES:
        assert event.model_copy(update={"time": event.time + timedelta(days=1)}).id == event.id


@given(st.text(max_size=100))
def test_fast_ids_equal_those_of_rfc_9562(name: str) -> None:
    assert events._uuid5(name) == str(uuid5(events.NAMESPACE, name))


def test_different_facts_have_different_ids() -> None:
    facts: list[Event] = []
    for request_id in ("one", "two"):
        facts += [created(request_id)]
        for index, run in product((0, 1, 10), (0, 1, 10)):
            image = requested(request_id, index, run=run)
            facts += [image, processed(image), failed(image)]
        for run in (0, 1):
            facts += [completed(request_id, run=run), output_requested([failed(requested(request_id))], run=run)]
            facts += [RequestCancelled(request_id=request_id, run=run)]
            facts += [
                RequestRetried(request_id=request_id, run=run + 1, created_at=NOON, reason=reason)
                for reason in (None, "fetch_timeout", "fetch_http_404")
            ]
            facts += [RequestStopped(**completed(request_id, run=run).model_dump())]
            facts += [ProgressEvicted(request_id=request_id, stage=stage, run=run) for stage in STAGES]
        for webhook_id in ("msg_1", "msg_2"):
            told: dict[str, Any] = {"request_id": request_id, "webhook_id": webhook_id}
            facts += [WebhookAttempted(**told, attempt=attempt, milliseconds=1) for attempt in (1, 2, 10)]
            for after in (0, 8, 16):
                facts += [WebhookDelivered(**told, attempts=1, after_attempt=after)]
                facts += [WebhookFailed(**told, attempts=1, after_attempt=after, reason="http_500")]
                facts += [WebhookRedeliveryRequested(**told, after_attempt=after)]
        settled = STORED["ImagesSettled.v1"]
        facts += [
            settled.model_copy(update={"request_id": request_id, "run": run, "first": first})
            for run, first in product((0, 1), (0, 100))
        ]
        facts += [
            ImagesRerequested(
                request_id=request_id, run=run, cause="stalled" if n else "retry", round=n, missing=1, image_offsets={}
            )
            for run, n in ((0, 1), (0, 2), (1, 0), (1, 1), (2, 1))
        ]
        facts += [RequestProjected(request_id=request_id, run=run) for run in (0, 1)]
    for rebuild_id, partition in product(("r1", "r2"), (0, 1)):
        rebuild: dict[str, Any] = {"request_id": "rebuild", "rebuild_id": rebuild_id, "partition": partition}
        facts += [ProgressRebuildRequested(**rebuild), ProgressRebuilt(**rebuild, events=1, changed=0, seconds=1)]
    assert len({fact.id for fact in facts}) == len(facts)


# --- what can't be read


def changed(event: Event = EXAMPLES[0], **attributes: Any) -> bytes:
    """The record of an event with some attributes of its envelope changed, or left out where None."""
    envelope = {**envelope_of(event), **attributes}
    return orjson.dumps({name: value for name, value in envelope.items() if value is not None})


def with_data(event: Event, **data: Any) -> bytes:
    return changed(event, data={**envelope_of(event)["data"], **data})


UNREADABLE: dict[str, bytes | None] = {
    "no value": None,
    "empty": b"",
    "not JSON": b"{",
    "not UTF-8": b'{"specversion": "1.0\xff"}',
    "half a surrogate": b'{"specversion": "1.0", "type": "\\ud800", "data": {}}',
    "nested too deeply": b"[" * 100_000 + b"]" * 100_000,
    "JSON, but a string": b'"RequestCreated"',
    "JSON, but a list": b"[1, 2]",
    "JSON null": b"null",
    "another object": b'{"hello": "world"}',
    "a CloudEvent of another version": changed(specversion="0.3"),
    "no type": changed(type=None),
    "type is a number": changed(type=1),
    "a CloudEvent of others": changed(type="com.example.object.created"),
    "our name without our prefix": changed(type="RequestCreated.v1"),
    "unknown type": changed(type="shrinkstream.RequestForgotten.v1"),
    "a base class": changed(type="shrinkstream.Event.v1"),
    "no version": changed(type="shrinkstream.RequestCreated"),
    "version zero": changed(type="shrinkstream.RequestCreated.v0"),
    "version is no number": changed(type="shrinkstream.RequestCreated.vv"),
    "version in other digits": changed(type="shrinkstream.RequestCreated.v\u0661"),
    "newer version": changed(type="shrinkstream.RequestCreated.v2"),
    "version of 5,000 digits": changed(type="shrinkstream.RequestCreated.v" + "9" * 5000),
    "no data": changed(data=None),
    "data is a list": changed(data=[]),
    "no time": changed(time=None),
    "time without a zone": changed(time="2026-11-21T12:00:00"),
    "time is a word": changed(time="noon"),
    "time before 1970": changed(time="1969-12-31T23:59:59Z"),
    "time after all calendars": changed(time="9999-12-31T23:59:59-14:00"),
    "field missing": changed(data={"requestId": REQUEST_ID}),
    "request id with a slash": with_data(EXAMPLES[0], requestId="../etc"),
    "request id is empty": with_data(EXAMPLES[0], requestId=""),
    "no images": with_data(EXAMPLES[0], total=0),
    "negative index": with_data(FIRST, index=-1),
    "quality over 100": with_data(FIRST, quality=101),
    "run beyond what progress can hold": with_data(FIRST, run=2**16),
    "negative size": with_data(processed(FIRST), inputBytes=-1),
    "size beyond what progress can hold": with_data(processed(FIRST), outputBytes=2**63),
    "row beyond what Cassandra can hold": with_data(failed(FIRST), row=2**31),
    "milliseconds beyond what Cassandra can hold": with_data(processed(FIRST), fetchMs=3_000_000_000),
    "milliseconds whose sum is beyond it": with_data(processed(FIRST), storeMs=2**29),
    "owner that is too long for a key": with_data(failed(FIRST), owner="x" * 70_000),
    "receiver that is too long for a key": with_data(EXAMPLES[0], webhookUrl="https://" + "x" * 70_000),
    "offset before the first": with_data(EXAMPLES[0], imageOffsets={"0": [-1, 4]}),
    "offset of no partition": with_data(EXAMPLES[0], imageOffsets={"-1": [0, 4]}),
    "negative round": with_data(STORED["ImagesRerequested.v1"], round=-1),
    "run that is none": with_data(STORED["RequestProjected.v1"], run=-1),
    "partition that is none": with_data(STORED["ProgressRebuildRequested.v1"], partition=-1),
    "product name that Cassandra can't look up": with_data(failed(FIRST), productName=""),
}


@pytest.mark.parametrize("value", UNREADABLE.values(), ids=UNREADABLE)
def test_foreign_records_are_unreadable(value: bytes | None) -> None:
    with pytest.raises(UnreadableEvent) as error:
        decode(value)
    assert 0 < len(str(error.value)) < 500


@given(st.binary())
def test_no_bytes_make_reading_crash(value: bytes) -> None:
    with contextlib.suppress(UnreadableEvent):
        decode(value)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A record of ours in which one attribute or one field became some other JSON."""
    envelope = envelope_of(draw(st.sampled_from(EXAMPLES)))
    place = draw(st.sampled_from([envelope, envelope["data"]]))
    place[draw(st.sampled_from(sorted(place)))] = draw(JSON)
    return orjson.dumps(envelope)


@given(damaged())
def test_damaged_event_never_crashes_decoder_or_fold(value: bytes) -> None:
    try:
        event = decode(value)
    except UnreadableEvent:
        return
    assert decode(event.encode()) == event
    assert event.id
    assert event.key


# --- versions


@pytest.fixture
def third_version(monkeypatch: pytest.MonkeyPatch) -> type[Event]:
    """WebhookFailed as it may look after two changes: ``reason`` became ``why``, then a list."""

    class WebhookFailed(Event):
        topic = "webhooks"
        version: ClassVar[int] = 3
        webhook_id: str
        attempts: int
        why: tuple[str, ...]

    upcasters: dict[tuple[str, int], Callable[[dict[str, Any]], dict[str, Any]]] = {
        ("WebhookFailed", 1): lambda data: {**data, "why": data["reason"]},
        ("WebhookFailed", 2): lambda data: {**data, "why": [data["why"]]},
    }
    monkeypatch.setitem(registry._CLASS_OF, "WebhookFailed", WebhookFailed)
    monkeypatch.setattr(registry, "UPCASTERS", upcasters)
    return WebhookFailed


def test_old_version_passes_every_later_upcaster(third_version: type[Event]) -> None:
    event = decode((SAMPLES / "WebhookFailed.v1.json").read_bytes())
    assert type(event) is third_version
    assert event.model_dump(exclude_none=True) == {
        "request_id": REQUEST_ID,
        "webhook_id": WEBHOOK_ID,
        "attempts": 9,
        "why": ("http_410",),
    }
    assert event.time == NOON
    assert decode(event.encode()) == event
    assert envelope_of(event)["type"] == "shrinkstream.WebhookFailed.v3"


@pytest.mark.usefixtures("third_version")
@pytest.mark.parametrize("data", [{}, {"reason": None}, {"reason": "x", "attempts": "many"}])
def test_wrong_data_of_an_old_version_is_unreadable(data: dict[str, Any]) -> None:
    with pytest.raises(UnreadableEvent, match=r"WebhookFailed\.v1"):
        decode(changed(STORED["WebhookFailed.v1"], data={"requestId": REQUEST_ID, "webhookId": "m", **data}))


@pytest.mark.usefixtures("third_version")
def test_an_old_version_without_an_upcaster_is_unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(registry.UPCASTERS, ("WebhookFailed", 2))
    with pytest.raises(UnreadableEvent, match=r"no upcaster from shrinkstream\.WebhookFailed\.v1"):
        decode((SAMPLES / "WebhookFailed.v1.json").read_bytes())


def test_decoder_ignores_unknown_field() -> None:
    assert decode(with_data(FIRST, colour="red")) == FIRST


def test_result_has_all_fields_of_its_request() -> None:
    for result in (processed(FIRST), failed(FIRST)):
        said = FIRST.model_dump(exclude={"quality", "format", "max_width", "max_height", "bulk"})  # how and where
        assert {name: getattr(result, name) for name in said} == said
        assert result.requested_at == FIRST.time
        assert result.topic == "image_results"
