"""Events that keep failing are given up, unless the reason is an outage."""

from typing import Any

import pytest
from cassandra import InvalidRequest, Unauthorized, WriteFailure

from infra.cassandra.session import CassandraUnavailableError
from infra.storage import StorageError
from streams.events.base import Event
from streams.events.requests import RequestCancelled
from streams.projections.last_resort import LastResort
from streams.request.lifecycle import Phase, RequestState, evolve
from streams.request.sentences import sentence
from tests.support.examples import completed, created, failed, output_requested, processed, requested

RESULT = failed(requested(run=2))


class Failing:
    """A handler that raises so many times."""

    def __init__(self, error: Exception, times: int) -> None:
        self.error, self.times, self.calls = error, times, 0

    async def __call__(self, event: Event) -> None:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error


def last_resort() -> tuple[LastResort, list[Any]]:
    appended: list[Any] = []

    async def append(event: Event) -> None:
        appended.append(event)

    return LastResort(append, tries=4, seconds=0.01), appended


@pytest.mark.slow
@pytest.mark.parametrize(
    "event",
    [created(), RESULT, processed(requested(run=2)), output_requested([RESULT], run=2)],
    ids=lambda e: type(e).__name__,
)
async def test_failing_event_cancels_its_request_with_the_reason(event: Any) -> None:
    resort, appended = last_resort()
    handler = Failing(InvalidRequest("value too large"), 99)
    reason = await resort.of(handler)(event)
    assert handler.calls == 4
    assert reason is not None
    assert "failed 4 times: InvalidRequest: " in reason
    (cancelled,) = appended
    assert isinstance(cancelled, RequestCancelled)
    assert cancelled.run == getattr(event, "run", 0)
    assert "value too large" in sentence(cancelled)
    state = evolve(evolve(None, created(event.request_id)), cancelled)
    assert isinstance(state, RequestState)
    assert state.phase is Phase.CANCELLED


async def test_event_of_an_ended_request_cancels_nothing() -> None:
    resort, appended = last_resort()
    assert await resort.of(Failing(ValueError("x"), 99))(completed()) is not None
    assert appended == []


async def test_event_that_succeeds_late_is_not_given_up() -> None:
    resort, appended = last_resort()
    handler = Failing(ValueError("x"), 3)
    assert await resort.of(handler)(RESULT) is None
    assert (handler.calls, appended) == (4, [])


@pytest.mark.parametrize(
    "error",
    [
        CassandraUnavailableError("away"),
        StorageError("away"),
        WriteFailure("a replica failed"),
        Unauthorized("wrong password"),
        OSError(28, "No space left on device"),
        TimeoutError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_outage_gives_up_no_event(error: Exception) -> None:
    resort, appended = last_resort()
    handler = Failing(error, 1)
    with pytest.raises(type(error)):
        await resort.of(handler)(RESULT)
    assert (handler.calls, appended) == (1, [])
