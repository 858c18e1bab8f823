"""Which images nobody fetches any more."""

import pytest

from streams.compress.cancellations import CancelledRequests
from streams.events.requests import RequestCancelled, RequestExpired, RequestForgotten
from tests.support.examples import NOON, created, requested


def cancelled(request_id: str, run: int = 0) -> bytes:
    return RequestCancelled(request_id=request_id, run=run).encode()


def test_cancellation_covers_its_run_but_not_later_retry() -> None:
    known = CancelledRequests()
    known.take([cancelled("one", run=1), created("two").encode(), cancelled("one", run=0)])
    assert [known.covers(requested("one", run=run)) for run in (0, 1, 2)] == [True, True, False]
    assert not known.covers(requested("two"))


@pytest.mark.parametrize(
    "event", [RequestExpired(request_id="one"), RequestForgotten(request_id="one", created_at=NOON)]
)
def test_images_of_expired_request_are_cancelled_in_every_run(event: RequestExpired) -> None:
    known = CancelledRequests()
    known.take([event.encode(), cancelled("one")])
    assert [known.covers(requested("one", run=run)) for run in (0, 7)] == [True, True]


def test_what_cannot_be_read_is_passed_over() -> None:
    known = CancelledRequests()
    known.take([None, b"", b"shrinkstream.RequestCancelled.v1", b"{rubbish", cancelled("one")])
    assert known.covers(requested("one"))


def test_memory_is_bounded_and_the_oldest_are_forgotten_first() -> None:
    known = CancelledRequests(limit=2)
    known.take(map(cancelled, ["one", "two", "one", "three"]))
    assert [known.covers(requested(name)) for name in ("one", "two", "three")] == [True, False, True]
