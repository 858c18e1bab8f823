"""F1: the end of a table's recovery skips input."""

import time
from collections.abc import Callable

from tests.integration.faust_guards.group import Group, at_once, wait_until


def test_a_restart_in_a_backlog_skips_no_event_of_an_app_with_a_table(new_group: Callable[..., Group]) -> None:
    def restart_in_a_backlog(group: Group) -> None:
        group.produce([b"sleep 0.005"] * 3000)
        for _ in range(2):
            finished = len(group.finished())
            worker = group.start()
            wait_until(lambda: len(group.finished()) >= finished + 100, "100 events")  # noqa: B023 - called now
            assert group.stop(worker) == 0

    guarded = new_group(table=True, partitions=4, seek_delay=0.3)
    unguarded = new_group(table=True, partitions=4, seek_delay=0.3, without="F1")
    at_once(restart_in_a_backlog, guarded, unguarded)

    assert not guarded.skipped()
    assert guarded.lost() == 0
    assert set(guarded.started().values()) == {1}, "a clean restart repeats nothing"
    assert unguarded.skipped()


def test_events_of_a_partition_that_was_never_committed_survive_a_recovery(
    new_group: Callable[..., Group],
) -> None:
    def recover(group: Group) -> None:
        group.produce([b""] * 50, partition=0)  # fills the changelog, and commits partition 0 only
        worker = group.start()
        wait_until(lambda: len(group.finished()) == 50, "the first partition's events")
        assert group.stop(worker) == 0
        group.produce([b"sleep 0.02"] * 50, partition=1)
        group.start()
        wait_until(lambda: (1, 0) in group.finished(), "the second partition's first event")

    guarded = new_group(table=True, partitions=2, seek_delay=0.3)
    unguarded = new_group(table=True, partitions=2, seek_delay=0.3, without="F1")
    at_once(recover, guarded, unguarded)

    wait_until(lambda: len(guarded.finished()) == 100, "the second partition's events")
    time.sleep(1)
    assert len(unguarded.finished()) < 100
