"""The status that the API tells, from the progress view and the history."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

import pytest

from api.context import Context
from api.requests.commands import time_after
from streams.events.base import utc_now
from streams.events.progress import ProgressEvicted
from streams.events.requests import RequestRetried
from streams.progress.view import StaleViewError
from streams.projections.history import History
from streams.request.lifecycle import RequestState, evolve
from streams.request.status import completed_status
from streams.request.tally import EMPTY, Tally
from tests.support.examples import NOON, REQUEST_ID, completed, created
from tests.support.view_feed import Feed

DONE = completed(failed=1)
RETRIED = RequestRetried(request_id=REQUEST_ID, run=1, created_at=NOON, time=NOON + timedelta(hours=5))


class SlowHistory(History):
    """Has the completed request; something happens while Cassandra is asked."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self._meanwhile = meanwhile

    async def request(self, request_id: str, **_: Any) -> tuple[RequestState, Tally]:
        self._meanwhile()
        state = evolve(RequestState.of(created(request_id, total=3, rows=3)), DONE)
        assert isinstance(state, RequestState)
        return state, EMPTY


def context_of(feed: Feed, history: History) -> Context:
    unused = cast("Any", None)
    return Context(unused, unused, feed.view, unused, history, unused, unused, unused, unused)


async def test_retry_restored_meanwhile_is_processing() -> None:
    feed = Feed()
    feed.rows(created(total=3, rows=3), DONE, ProgressEvicted(request_id=REQUEST_ID, stage="evicted", run=0, time=NOON))
    feed.event(RETRIED)
    history = SlowHistory(lambda: feed.rows(created(total=3, rows=3), DONE, RETRIED))
    status = await context_of(feed, history).status(REQUEST_ID, fresh=False)
    assert status is not None
    assert status.status == "processing"


async def test_stale_view_returns_no_status() -> None:
    feed = Feed()
    feed.rows(created())
    context = context_of(feed, SlowHistory(lambda: None))
    with pytest.raises(StaleViewError):
        await context.status(REQUEST_ID)
    assert await context.status(REQUEST_ID, fresh=False) is not None


def test_slow_clock_dates_command_after_last_event() -> None:
    later = utc_now() + timedelta(seconds=40)
    status = completed_status(DONE.model_copy(update={"time": later}), None)
    assert time_after(status) > later
