"""F1: the end of a table's recovery skips input."""

from collections.abc import Callable

import pytest

from tests.integration.faust_guards.group import Group, at_once
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

FAR_AWAY = 2.0
"""Seconds that a broker takes to say what is committed: Faust's fetcher sleeps for one, and must wake meanwhile."""


def test_restart_in_backlog_skips_no_event(new_group: Callable[..., Group]) -> None:
    def restart_in_a_backlog(group: Group) -> None:
        group.produce([b"sleep 0.005"] * 3000)
        worker = group.start()
        wait_until(lambda: len(group.finished()) >= 100, "a part of the backlog")
        assert group.stop(worker) == 0
        before = len(group.finished())
        worker = group.start(seek_delay=FAR_AWAY)
        wait_until(lambda: len(group.finished()) >= before + 600, "more than fits into the delay")
        assert group.stop(worker) == 0

    guarded = new_group(table=True, partitions=4)
    unguarded = new_group(table=True, partitions=4, without="F1")
    at_once(restart_in_a_backlog, guarded, unguarded)

    assert not guarded.skipped()
    assert guarded.lost() == 0
    assert set(guarded.started().values()) == {1}, "a clean restart repeats nothing"
    assert unguarded.skipped()


def test_table_recovers_from_changelog_of_tombstones(new_group: Callable[..., Group]) -> None:
    group = new_group(table=True)
    group.cluster.produce(group.changelog, [None] * 20_000, partition=0)
    group.produce([b""])
    worker = group.start()
    wait_until(lambda: len(group.finished()) == 1, "the first event after the recovery")
    assert group.stop(worker) == 0
    assert group.committed() == {0: 1}
