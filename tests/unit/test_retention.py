"""Which requests have had their time: those whose last word is an ending, and an old one."""

from hypothesis import given
from hypothesis import strategies as st

from streams.events import Event, RequestFilesRemoved
from streams.projections.retention import ENDINGS, Finished
from tests.examples import completed, created


def events_of(request_id: str) -> list[Event]:
    return [created(request_id), completed(request_id), RequestFilesRemoved(request_id=request_id)]


HISTORIES = st.lists(st.sampled_from([event for name in "abc" for event in events_of(name)]), max_size=20)


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
