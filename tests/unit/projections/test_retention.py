"""Which requests expire: those that ended long ago and whose end is still the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.events.base import Event
from streams.events.requests import RequestCancelled, RequestExpired, RequestRetried, RequestStopped
from streams.projections.retention import Candidates
from streams.request.lifecycle import Lifecycle, advance
from tests.support.examples import NOON, completed, created

CANCELLED = RequestCancelled(request_id="a")
STOPPED = RequestStopped(**completed("a").model_dump())
RETRIED = RequestRetried(request_id="a", run=1, created_at=NOON)
EXPIRED = RequestExpired(request_id="a")
EVENTS: list[Event] = [created("a"), CANCELLED, STOPPED, completed("a"), completed("a", failed=0), RETRIED, EXPIRED]
HISTORIES = st.lists(
    st.sampled_from([event.model_copy(update={"request_id": name}) for name in "abc" for event in EVENTS]), max_size=30
)


def expiring(old: list[Event], later: list[Event]) -> list[str]:
    candidates = Candidates()
    for event in old:
        candidates.read_old(event)
    for event in later:
        candidates.read_later(event)
    return candidates.requests


@given(HISTORIES, HISTORIES)
def test_ended_request_expires_unless_touched_later(old: list[Event], later: list[Event]) -> None:
    expected = []
    for name in "abc":
        lives = [Lifecycle()]
        for event in (*old, *later):
            lives.append(advance(lives[-1], event) if event.request_id == name else lives[-1])
        ends = [None if life.is_expired else life.end for life in lives[len(old) :]]
        if ends[0] is not None and all(end == ends[0] for end in ends):
            expected.append(name)
    assert sorted(expiring(old, later)) == expected


@pytest.mark.parametrize(
    ("old", "later", "expires"),
    [
        ([created("a")], [], False),
        ([completed("a")], [], True),
        ([STOPPED], [], True),
        ([completed("a"), EXPIRED], [], False),
        ([completed("a")], [EXPIRED], False),
        ([completed("a"), RETRIED], [], False),
        ([completed("a")], [RETRIED], False),
        ([completed("a")], [RETRIED, completed("a", run=1)], False),
        ([RETRIED, completed("a", run=1)], [], True),
        ([completed("a")], [completed("a", failed=0)], False),
        ([completed("a")], [completed("a")], True),
        ([completed("a"), created("a")], [], True),
        ([completed("a")], [created("a")], True),
        ([RETRIED, completed("a")], [], False),
        # Not before its last image has its result.
        ([created("a"), CANCELLED], [], False),
        # A cancellation that came too late changes nothing.
        ([completed("a"), CANCELLED], [CANCELLED], True),
    ],
)
def test_last_end_decides(old: list[Event], later: list[Event], expires: bool) -> None:
    assert expiring(old, later) == (["a"] if expires else [])


def test_creations_are_not_remembered() -> None:
    candidates = Candidates()
    candidates.read_old(created("a"))
    assert len(candidates) == 0


def test_only_candidates_are_decoded_later() -> None:
    candidates = Candidates()
    for event in (created("a"), completed("b"), completed("c")):
        candidates.read_old(event)
    candidates.read_later(RETRIED.model_copy(update={"request_id": "c"}))
    assert [key for key in (b"a", b"b", b"c", b"\xff", None) if key in candidates] == [b"b"]
