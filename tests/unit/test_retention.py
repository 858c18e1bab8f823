"""Which requests have had their time: those whose last word is an ending, and an old one."""

from hypothesis import given
from hypothesis import strategies as st

from streams.events import Event, RequestCancelled, RequestFilesRemoved, RequestRetried, RequestStopped
from streams.projections.retention import ENDINGS, Finished
from tests.support.examples import NOON, completed, created


def events_of(request_id: str) -> list[Event]:
    return [
        created(request_id),
        completed(request_id),
        RequestStopped(**completed(request_id).model_dump()),
        RequestRetried(request_id=request_id, run=1, created_at=NOON),
        RequestFilesRemoved(request_id=request_id),
    ]


HISTORIES = st.lists(st.sampled_from([event for name in "abc" for event in events_of(name)]), max_size=30)


@given(HISTORIES, HISTORIES)
def test_a_request_is_over_when_its_last_word_is_an_old_ending(old: list[Event], later: list[Event]) -> None:
    finished = Finished()
    for event in old:
        finished.read_old(event)
    for event in later:
        finished.read_later(event)
    last_words = {event.request_id: event for event in old}
    talked_of_later = {event.request_id for event in later}
    assert set(finished.requests) == {
        name for name, event in last_words.items() if isinstance(event, ENDINGS) and name not in talked_of_later
    }
    assert len(finished) == len(finished.requests)


def test_a_cancellation_that_came_too_late_keeps_nothing_for_ever() -> None:
    finished = Finished()
    for event in (created("a"), completed("a"), RequestCancelled(request_id="a")):
        finished.read_old(event)
    finished.read_later(RequestCancelled(request_id="a"))
    assert finished.requests == ["a"]


def test_what_is_cancelled_has_not_ended_before_its_last_image_has() -> None:
    finished = Finished()
    for event in (created("a"), RequestCancelled(request_id="a")):
        finished.read_old(event)
    assert finished.requests == []
