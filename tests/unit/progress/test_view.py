"""The progress view's fold of two topics, without Kafka."""

from datetime import timedelta

import pytest
from aiokafka import TopicPartition

from streams.events.requests import RequestCancelled, RequestRetried
from streams.progress.store import row_key
from tests.support.examples import NOON, REQUEST_ID, completed, created, processed, requested
from tests.support.view_feed import Feed, record


async def test_completion_is_known_before_its_row() -> None:
    """The receiver of a webhook follows its link at once, while the progress worker may be restarting."""
    feed = Feed()
    feed.rows(created(total=1, rows=1))
    assert feed.view.get(REQUEST_ID).status == "processing"  # type: ignore[union-attr]
    done = completed(total=1, succeeded=1, failed=0)
    feed.event(done)
    status = feed.view.get(REQUEST_ID)
    assert status is not None
    assert status.status == "completed"
    assert status.succeeded == 1
    assert status.output_csv_path == done.output_csv_path
    feed.rows(processed(requested(REQUEST_ID, 0)), done)
    assert feed.view._requests[REQUEST_ID].ahead == {}


async def test_retry_supersedes_the_completion_before_it() -> None:
    feed = Feed()
    feed.rows(created(total=1, rows=1))
    feed.event(completed(total=1, succeeded=0, failed=1))
    feed.event(RequestRetried(request_id=REQUEST_ID, run=1, created_at=NOON, time=NOON + timedelta(hours=5)))
    assert feed.view.get(REQUEST_ID).status == "processing"  # type: ignore[union-attr]


async def test_completion_with_fewer_failures_supersedes() -> None:
    feed = Feed()
    feed.rows(created(total=2, rows=2))
    for failed in (1, 0, 1):
        feed.event(completed(total=2, succeeded=2 - failed, failed=failed))
    assert feed.view.get(REQUEST_ID).failed == 0  # type: ignore[union-attr]


async def test_late_completion_does_not_resurrect_an_evicted_request() -> None:
    feed = Feed()
    topic = feed.view._topics.progress_changelog
    feed.view._take(TopicPartition(topic, 0), [record(topic, row_key(REQUEST_ID), None)])
    feed.event(completed(total=1, succeeded=1, failed=0))
    assert feed.view.get(REQUEST_ID) is None


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_cancellation_does_not_hide_a_completion(is_cancelled: bool) -> None:
    feed = Feed()
    feed.rows(created(total=1, rows=1))
    if is_cancelled:
        feed.event(RequestCancelled(request_id=REQUEST_ID, run=0, time=NOON))
    feed.event(completed(total=1, succeeded=1, failed=0))
    assert feed.view.get(REQUEST_ID).status == "completed"  # type: ignore[union-attr]


@pytest.mark.parametrize("place", ["row", "ahead", "evicted"])
async def test_first_of_two_retries_counts(place: str) -> None:
    """Whether its run is in the table, was not folded yet, or is that of an evicted request."""
    feed = Feed()
    first, second = (
        RequestRetried(request_id=REQUEST_ID, run=1, created_at=NOON, reason=reason, time=NOON + timedelta(hours=5))
        for reason in ("fetch_timeout", "fetch_http_404")
    )
    if place != "evicted":
        feed.rows(created(total=1, rows=1), completed(total=1, succeeded=0, failed=1))
    for event in (first, second, first):
        feed.event(event)
    if place == "row":
        feed.rows(first, second)
    assert not feed.view.was_forestalled(first)
    assert feed.view.was_forestalled(second)
