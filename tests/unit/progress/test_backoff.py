"""Backoff of events that wait for their consumer."""

from datetime import timedelta

from streams.progress.reconciler import Backoff
from tests.support.examples import NOON

MINUTE = timedelta(minutes=1)


def test_pauses_double_up_to_longest() -> None:
    backoff = Backoff(5 * MINUTE, 60 * MINUTE)
    due = [minute for minute in range(300) if backoff.is_due("a", NOON + minute * MINUTE)]
    assert due == [0, 5, 15, 35, 75, 135, 195, 255]


def test_events_do_not_share_their_pauses() -> None:
    backoff = Backoff(5 * MINUTE, 60 * MINUTE)
    assert [backoff.is_due(name, NOON) for name in ("a", "b", "a")] == [True, True, False]


def test_event_that_had_its_effect_is_forgotten() -> None:
    backoff = Backoff(5 * MINUTE, 60 * MINUTE)
    for number in range(1000):
        assert backoff.is_due(str(number), NOON)
    assert backoff.is_due("another", NOON + 66 * MINUTE)
    assert len(backoff) == 1
