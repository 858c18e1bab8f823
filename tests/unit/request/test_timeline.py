"""The timeline of a request, in whatever order its events are read."""

import json
import random
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.events.base import Event
from streams.events.images import ImageFailed, ImageProcessed
from streams.events.progress import ImagesRerequested
from streams.events.requests import RequestCancelled, RequestRetried
from streams.events.webhooks import WebhookAttempted, WebhookDelivered
from streams.request.timeline import MAX_INTERVALS, EventLine, Gap, GroupLine, Logged, Timeline
from tests.support.examples import NOON, REQUEST_ID, completed, created, failed, output_requested, processed, requested

LATER = NOON + timedelta(hours=5)


def trace_of(*events: tuple[float, Event], every_image: bool = True, shuffled: int | None = None) -> Timeline:
    """Of events that were written so many seconds after noon, read in an order of their own."""
    logged = [
        Logged(event, NOON + timedelta(seconds=seconds), f"s.{event.topic}", 0, offset, f"w{offset % 2}@host-1")
        for offset, (seconds, event) in enumerate(events)
    ]
    if shuffled is not None:
        random.Random(shuffled).shuffle(logged)
    trace = Timeline(every_image=every_image)
    for each in logged:
        trace.add(each)
    return trace


def gaps(trace: Timeline, now: datetime = LATER) -> list[tuple[str, str]]:
    return [(line.what, line.text) for line in trace.lines(now) if isinstance(line, Gap)]


def life(images: int = 3, **fields: Any) -> list[tuple[float, Event]]:
    """A request that went well: the last of its images has failed."""
    asked = [requested(index=index) for index in range(images)]
    results: list[ImageProcessed | ImageFailed] = [*map(processed, asked[:-1]), failed(asked[-1])]
    return [
        *((0.001, image) for image in asked),
        (0.002, created(total=images, rows=images)),
        *((1 + index / 1000, result) for index, result in enumerate(results)),
        (2, output_requested(results)),
        (3, completed(total=images, succeeded=images - 1, failed=1, **fields)),
    ]


@given(st.integers(0, 10_000))
def test_lines_are_in_order_of_writing(seed: int) -> None:
    trace = trace_of(*life(), shuffled=seed)
    told = [line.name for line in trace.lines(LATER) if isinstance(line, EventLine)]
    assert told == [
        *["ImageRequested"] * 3, "RequestCreated", "ImageProcessed", "ImageProcessed", "ImageFailed",
        "OutputCsvRequested", "RequestCompleted",
    ]  # fmt: skip
    assert (trace.phase, trace.repeats, gaps(trace)) == ("completed", 0, [])


@given(st.lists(st.integers(0, 8), max_size=12))
def test_repeated_event_only_adds_a_repeat(again: list[int]) -> None:
    events = life()
    trace = trace_of(*events, *(events[which] for which in again))
    assert trace.repeats == len(again)
    assert sum(line.repeat for line in trace.lines(LATER) if isinstance(line, EventLine)) == len(again)
    assert gaps(trace) == []


@given(st.sets(st.integers(0, 29)), st.sets(st.integers(0, 29)))
def test_missing_results_and_requests_are_gaps(lost: set[int], unasked: set[int]) -> None:
    events: list[tuple[float, Event]] = [(0, created(total=30, rows=30))]
    events += [(0, requested(index=index)) for index in range(30) if index not in unasked]
    events += [(0, processed(requested(index=index))) for index in range(30) if index not in lost]
    found = dict(gaps(trace_of(*events)))
    assert ("no-result" in found) == bool(lost)
    assert ("not-requested" in found) == bool(unasked)
    if lost:
        assert found["no-result"].startswith(f"no result: {len(lost)} image")
    else:
        assert "the output CSV was not requested" in found["no-output"]


def test_gap_names_a_bounded_number_of_ranges() -> None:
    asked = [(0.0, requested(index=index)) for index in range(100)]
    some = trace_of((0, created(total=9, rows=9)), *asked[:9], *((0, processed(requested(index=i))) for i in (1, 2, 6)))
    assert dict(gaps(some))["no-result"] == "no result: 6 images (0, 3-5, 7-8)"
    many = trace_of((0, created(total=100)), *asked, *((0, processed(requested(index=i))) for i in range(0, 100, 2)))
    assert dict(gaps(many))["no-result"].endswith("15, 17, 19, …)")


def test_request_with_recent_events_misses_nothing() -> None:
    running = trace_of((0, requested()), (1, created()))
    assert gaps(running, NOON + timedelta(seconds=5)) == []
    assert [what for what, _ in gaps(running, NOON + timedelta(seconds=60))] == ["silence", "no-result"]


def test_silence_is_a_gap_only_within_a_run() -> None:
    trace = trace_of(
        (0, requested(index=0)),
        (0, requested(index=1)),
        (1, created(total=2)),
        (2, processed(requested(index=0))),
        (62, processed(requested(index=1))),
        (63, output_requested([processed(requested(index=0)), processed(requested(index=1))])),
        (64, completed(total=2, succeeded=2, failed=0)),
        (3000, ImagesRerequested(request_id=REQUEST_ID, run=0, cause="stalled", round=1, missing=0, image_offsets={})),
    )
    (silence,) = [line for line in trace.lines(LATER) if isinstance(line, Gap)]
    assert silence.text == "no event for 60 s"
    assert (silence.first, silence.last) == (NOON + timedelta(seconds=2), NOON + timedelta(seconds=62))


def test_retry_waits_for_failed_images_only() -> None:
    retried = RequestRetried(request_id=REQUEST_ID, time=NOON, run=1, created_at=NOON)
    again = ImagesRerequested(
        request_id=REQUEST_ID, time=NOON, run=1, cause="retry", missing=1, image_offsets={0: (90, 95)}
    )
    events = [*life(), (100, retried), (100, again), (100, requested(index=2, run=1))]
    trace = trace_of(*events)
    assert (trace.phase, trace.run, trace.image_offsets) == ("processing", 1, {0: (90, 95)})
    assert dict(gaps(trace))["no-result"] == "no result: 1 image (2)"


def test_cancelled_request_misses_no_results() -> None:
    cancelled = RequestCancelled(request_id=REQUEST_ID, time=NOON)
    trace = trace_of((0, requested(index=0)), (0, requested(index=1)), (1, created(total=2)), (2, cancelled))
    assert (trace.phase, gaps(trace)) == ("cancelled", [])


def test_missing_steps_are_gaps() -> None:
    *whole, end = life(webhook_url="https://receiver.example/hook")
    assert dict(gaps(trace_of(*whole)))["not-completed"].startswith("the output CSV was requested")
    assert [what for what, _ in gaps(trace_of(*whole, end))] == ["no-webhook"]

    def attempt(number: int, status: int) -> tuple[float, Event]:
        reason = None if status == 200 else f"http_{status}"
        return 4, WebhookAttempted(
            request_id=REQUEST_ID, webhook_id="msg_1", attempt=number, status=status, milliseconds=5, reason=reason
        )

    assert gaps(trace_of(*whole, end, attempt(1, 500))) == []
    missing = gaps(trace_of(*whole, end, attempt(1, 500), attempt(4, 200)))
    assert missing == [
        ("webhook-attempts", "msg_1: no event about delivery attempt 2, 3"),
        ("no-outcome", "msg_1: delivery attempt 4 has no outcome"),
    ]
    delivered = WebhookDelivered(request_id=REQUEST_ID, webhook_id="msg_1", attempts=1)
    assert gaps(trace_of(*whole, end, attempt(1, 200), (4, delivered))) == []


@pytest.mark.slow
@pytest.mark.parametrize("images", [1, 50, 3000])
def test_number_of_lines_does_not_grow_with_images(images: int) -> None:
    events: list[tuple[float, Event]] = [(0, created(total=images, rows=images))]
    events += [(index / 100, requested(index=index)) for index in range(images)]
    events += [(index / 10, processed(requested(index=index))) for index in range(images)] * 2
    trace = trace_of(*events, every_image=False)
    groups = [line for line in trace.lines(LATER) if isinstance(line, GroupLine)]
    assert len(groups) <= 2 * MAX_INTERVALS
    for name, count, repeats in (("ImageRequested", images, 0), ("ImageProcessed", 2 * images, images)):
        those = [group for group in groups if group.name == name]
        assert sum(group.count for group in those) == count
        assert sum(group.repeats for group in those) == repeats
        assert sum(sum(group.workers.values()) for group in those) == count
    assert sum(group.input_bytes for group in groups) == 2 * images * 1000
    assert all(group.first <= group.last for group in groups)


def test_json_line_has_all_fields() -> None:
    event, *_ = trace_of(*life()).lines(LATER)
    assert isinstance(event, EventLine)
    assert json.loads(event.document) == {
        "kind": "event",
        "written": "2026-11-21T12:00:00.001000Z",
        "event": "ImageRequested",
        "id": requested().id,
        "subject": f"{REQUEST_ID}/0",
        "time": "2026-11-21T12:00:00Z",
        "topic": "s.image_requests",
        "partition": 0,
        "offset": 0,
        "worker": "w0@host-1",
        "traceparent": requested().own_traceparent,
        "repeat": False,
        "text": "Image 0 requested: https://shop.example/0.jpg",
    }
