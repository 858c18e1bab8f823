"""F2: a rebalance forgets what is finished."""

from collections.abc import Callable
from threading import Event

import pytest

from tests.integration.faust_guards.group import EXIT_SECONDS, Group, at_once
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

EVENTS = 400


def shared_out(group: Group) -> bool:
    """Two workers have two of the four partitions each."""
    assigned = group.lines("assigned")[-2:]
    return [len(partitions) for partitions in assigned] == [2, 2] and len({*assigned[0], *assigned[1]}) == 4


def test_joining_worker_repeats_nothing(new_group: Callable[..., Group]) -> None:
    repeated = Event()

    def join(group: Group) -> None:
        group.produce([b""] * EVENTS)
        group.start()
        wait_until(lambda: len(group.finished()) == EVENTS, "all events")
        group.start()
        wait_until(lambda: shared_out(group), "two partitions each")
        if group is unguarded:
            wait_until(lambda: group.started().total() > EVENTS, "what was forgotten again")
            repeated.set()
        assert repeated.wait(180), "the guarded workers have had as much time"

    never = {"broker_commit_interval": 60.0}  # what is committed is committed by the rebalance
    guarded = new_group(partitions=4, in_flight=8, options=never)
    unguarded = new_group(partitions=4, in_flight=8, options=never, without="F2")
    at_once(join, guarded, unguarded)

    assert guarded.started().total() == EVENTS
    assert sum(guarded.committed().values()) == EVENTS
    assert unguarded.started().total() > EVENTS


def test_idle_group_delivers_once_after_rebalance(new_group: Callable[..., Group]) -> None:
    group = new_group(partitions=4, in_flight=8)
    group.start()
    wait_until(lambda: group.lines("assigned"), "the first worker")
    group.start()
    wait_until(lambda: shared_out(group), "two partitions each")
    group.produce([b""] * EVENTS)
    wait_until(lambda: len(group.finished()) == EVENTS, "all events")
    assert set(group.started().values()) == {1}


def test_two_workers_stopped_together_lose_and_repeat_nothing(new_group: Callable[..., Group]) -> None:
    group = new_group(partitions=4, in_flight=4)
    workers = [group.start(), group.start()]
    wait_until(lambda: shared_out(group), "two partitions each")
    group.produce([b"sleep 0.2"] * 100)
    wait_until(lambda: len(group.started()) > 20, "events under way")
    for worker in workers:
        worker.terminate()
    assert [worker.wait(EXIT_SECONDS) for worker in workers] == [0, 0]
    started = group.started()
    assert set(started.values()) == {1}
    assert group.finished() == started
    assert sum(group.committed().values()) == started.total()


def test_event_outlasting_rebalance_ends_table_worker(new_group: Callable[..., Group]) -> None:
    group = new_group(partitions=2, table=True, constants={"REVOKE_DRAIN": 1.0})
    group.produce([b"wait never"], partition=0)
    worker = group.start()
    wait_until(lambda: group.started(), "the event")
    group.start()
    assert worker.wait(EXIT_SECONDS) == 70
    assert "outlasted a rebalance" in group.output()
    assert not any(group.committed().values())
