"""What a request's events tell people, however many there are and however they arrive."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.log_summary import MOST_ENTRIES, MOST_INTERVALS, LogSummary, RequestLog, sentence
from streams.events import (
    EVENT_CLASSES,
    Event,
    ImageFailed,
    ImageProcessed,
    ImagesRequestedAgain,
    RequestCancelled,
    RequestExpired,
    WebhookAttempted,
    WebhookFailed,
)
from tests.support.examples import NOON, REQUEST_ID, completed, created, failed, output_requested, processed, requested


def log_of(*events: Event) -> RequestLog:
    summary = LogSummary()
    for event in events:
        summary.add(event)
    return summary.log()


def later(event: ImageProcessed | ImageFailed, seconds: int) -> ImageProcessed | ImageFailed:
    return event.model_copy(update={"time": NOON + timedelta(seconds=seconds)})


def test_the_story_of_a_request_is_told_in_its_order_whatever_the_order_of_the_events() -> None:
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


def test_an_event_that_comes_again_is_told_once() -> None:
    result = processed(requested())
    assert log_of(created(), result, created(), result) == log_of(created(), result)


@given(st.lists(st.tuples(st.integers(0, 50_000), st.booleans()), min_size=1, max_size=300))
def test_no_result_is_lost_from_the_sums_and_the_log_stays_short(outcomes: list[tuple[int, bool]]) -> None:
    results = [
        later((processed if good else failed)(requested(index=index)), seconds)
        for index, (seconds, good) in enumerate(outcomes)
    ]
    entries = log_of(*results).entries
    sums = [entry.results for entry in entries if entry.results]
    good = sum(good for _, good in outcomes)
    assert len(entries) <= MOST_INTERVALS
    assert sum(each.succeeded for each in sums) == good
    assert sum(each.failed for each in sums) == len(outcomes) - good
    assert sum(each.input_bytes for each in sums) == 1000 * good
    assert sum(each.output_bytes for each in sums) == 400 * good
    assert min(entry.time for entry in entries) == min(result.time for result in results)
    assert max(entry.until for entry in entries if entry.until) == max(result.time for result in results)


def test_a_retry_counts_as_a_result_of_its_own() -> None:
    entries = log_of(failed(requested()), processed(requested(attempt=1))).entries
    assert [entry.text for entry in entries] == ["1 image failed", "1 image compressed"]


def test_more_events_than_fit_are_left_out_and_that_is_said() -> None:
    events = [
        ImagesRequestedAgain(request_id=REQUEST_ID, heal=heal, missing=1, image_offsets={}, time=NOON)
        for heal in range(MOST_ENTRIES + 1)
    ]
    log = log_of(*events)
    assert len(log.entries) == MOST_ENTRIES
    assert not log.whole


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (RequestCancelled(request_id=REQUEST_ID), "The request was cancelled"),
        (
            WebhookAttempted(request_id=REQUEST_ID, webhook_id="msg_1", attempt=2, milliseconds=31, status=500),
            "Webhook, attempt 2: HTTP 500 after 31 ms",
        ),
        (
            WebhookAttempted(request_id=REQUEST_ID, webhook_id="msg_1", attempt=1, milliseconds=7, reason="refused"),
            "Webhook, attempt 1: refused after 7 ms",
        ),
        (
            WebhookFailed(request_id=REQUEST_ID, webhook_id="msg_1", attempts=1, reason="gone"),
            "The webhook is given up after 1 attempt: gone",
        ),
        (
            RequestExpired(request_id=REQUEST_ID, stage="done"),
            "A finished request leaves the progress table; the second time, the mark that it was there leaves too",
        ),
    ],
)
def test_events_are_told_in_words(event: Event, text: str) -> None:
    assert sentence(event) == text


def test_every_kind_of_event_has_words() -> None:
    assert all(cls.__doc__ for cls in EVENT_CLASSES)
