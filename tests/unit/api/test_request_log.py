"""What a request's events tell people, however many there are and however they arrive."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.contract.models import RequestLog
from api.requests.timeline import MAX_ENTRIES, MAX_INTERVALS
from api.requests.timeline import log_of as log_of_timeline
from streams.events.base import Event
from streams.events.images import ImageFailed, ImageProcessed
from streams.events.progress import ImagesRerequested, ProgressEvicted
from streams.events.registry import EVENT_CLASSES
from streams.events.requests import RequestCancelled
from streams.events.webhooks import WebhookAttempted, WebhookFailed
from streams.request.sentences import sentence
from streams.request.timeline import Logged, Timeline
from tests.support.examples import NOON, REQUEST_ID, completed, created, failed, output_requested, processed, requested


def log_of(*events: Event) -> RequestLog:
    timeline = Timeline(with_repeats=False, max_intervals=MAX_INTERVALS, max_lines=MAX_ENTRIES)
    for offset, event in enumerate(events):
        timeline.add(Logged(event, event.time, event.topic, 0, offset, "w"))
    return log_of_timeline(timeline)


def later(event: ImageProcessed | ImageFailed, seconds: int) -> ImageProcessed | ImageFailed:
    return event.model_copy(update={"time": NOON + timedelta(seconds=seconds)})


def test_entries_are_in_order_of_their_time() -> None:
    results: list[ImageProcessed | ImageFailed] = [
        processed(requested(index=0)),
        failed(requested(index=1)),
        processed(requested(index=2)),
    ]
    last = max(result.time for result in results)
    end = completed(time=last)
    events = [end, output_requested(results), *results, created(total=3, rows=2)]
    log = log_of(*events)
    assert [entry.event for entry in log.entries] == [
        "RequestCreated",
        "ImageResults",
        "ImageResults",
        "ImageResults",
        "OutputCsvRequested",
        "RequestCompleted",
    ]
    assert log.whole
    assert log.entries[0].text == "A CSV of 2 rows with 3 images was accepted"
    assert [entry.text for entry in log.entries[1:4]] == ["1 image compressed", "1 image failed", "1 image compressed"]
    assert log.entries[-1].text == "Completed: 2 of 3 images compressed, 1 failed"


def test_repeated_event_has_one_entry() -> None:
    result = processed(requested())
    assert log_of(created(), result, created(), result) == log_of(created(), result)


@given(st.lists(st.tuples(st.integers(0, 50_000), st.booleans()), min_size=1, max_size=300))
def test_intervals_sum_up_every_result(outcomes: list[tuple[int, bool]]) -> None:
    results = [
        later((processed if good else failed)(requested(index=index)), seconds)
        for index, (seconds, good) in enumerate(outcomes)
    ]
    entries = log_of(*results).entries
    sums = [entry.results for entry in entries if entry.results]
    good = sum(good for _, good in outcomes)
    assert len(entries) <= MAX_INTERVALS
    assert sum(each.succeeded for each in sums) == good
    assert sum(each.failed for each in sums) == len(outcomes) - good
    assert sum(each.input_bytes for each in sums) == 1000 * good
    assert sum(each.output_bytes for each in sums) == 400 * good
    assert min(entry.time for entry in entries) == min(result.time for result in results)
    assert max(entry.until for entry in entries if entry.until) == max(result.time for result in results)


def test_result_of_retry_counts_on_its_own() -> None:
    entries = log_of(failed(requested()), processed(requested(run=1))).entries
    assert [entry.text for entry in entries] == ["1 image failed", "1 image compressed"]


def test_log_with_too_many_events_is_not_whole() -> None:
    events = [
        ImagesRerequested(request_id=REQUEST_ID, cause="stalled", round=number, missing=1, image_offsets={}, time=NOON)
        for number in range(MAX_ENTRIES + 1)
    ]
    log = log_of(*events)
    assert len(log.entries) == MAX_ENTRIES
    assert not log.whole


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (RequestCancelled(request_id=REQUEST_ID), "The request was cancelled"),
        (
            WebhookAttempted(request_id=REQUEST_ID, webhook_id="msg_1", attempt=2, milliseconds=31, status=500),
            "Webhook, delivery attempt 2: HTTP 500 after 31 ms",
        ),
        (
            WebhookAttempted(request_id=REQUEST_ID, webhook_id="msg_1", attempt=1, milliseconds=7, reason="refused"),
            "Webhook, delivery attempt 1: refused after 7 ms",
        ),
        (
            WebhookFailed(request_id=REQUEST_ID, webhook_id="msg_1", attempts=1, reason="gone"),
            "Webhook failed after 1 delivery attempt: gone",
        ),
        (
            ProgressEvicted(request_id=REQUEST_ID, stage="evicted"),
            "A finished request is evicted from the progress table, and a week later its tombstone is dropped",
        ),
    ],
)
def test_event_has_its_sentence(event: Event, text: str) -> None:
    assert sentence(event) == text


def test_every_event_type_has_a_description() -> None:
    assert all(cls.__doc__ for cls in EVENT_CLASSES)
