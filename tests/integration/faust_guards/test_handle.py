"""F4 and ``handle``: several events at once, committed in order, drained at a stop."""

from collections import Counter
from collections.abc import Callable
from threading import Event

import pytest

from tests.integration.faust_guards.group import Group, at_once
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


def test_killed_worker_has_committed_no_unfinished_event(
    new_group: Callable[..., Group],
) -> None:
    passed = Event()

    def kill_with_an_unfinished_event(group: Group) -> None:
        gate = group.folder / "gate"
        group.produce([f"wait {gate}".encode(), b"", b"", b"sleep 60", b"sleep 60", b""])
        worker = group.start()
        wait_until(lambda: len(group.started()) == 5, "three unfinished and two finished events")
        if group is unguarded:
            wait_until(lambda: group.committed().get(0) == 3, "a commit past the unfinished event")
            passed.set()
        assert passed.wait(180), "the guarded worker has had as much time"
        worker.kill()
        worker.wait()
        gate.touch()

    soon = {"broker_session_timeout": 6.0}
    guarded = new_group(in_flight=3, options=soon)
    unguarded = new_group(in_flight=3, options=soon, without="F4")
    at_once(kill_with_an_unfinished_event, guarded, unguarded)

    assert guarded.finished() == Counter({(0, 1): 1, (0, 2): 1}), "events finish in any order"
    assert (0, 5) not in guarded.started(), "nothing is taken while all are busy"
    assert guarded.committed().get(0, 0) == 0
    assert unguarded.committed()[0] == 3

    guarded.start()
    wait_until(lambda: (0, 0) in guarded.finished(), "the first event again")
    assert guarded.started()[0, 0] == 2


def test_sigterm_finishes_and_commits_in_flight_events(new_group: Callable[..., Group]) -> None:
    group = new_group(in_flight=4, partitions=2)
    group.produce([b"sleep 1.5"] * 40)
    worker = group.start()
    wait_until(lambda: len(group.started()) == 4, "four events under way")
    assert group.stop(worker) == 0
    assert group.finished() == group.started()
    assert sum(group.committed().values()) == len(group.started()) == 4
    assert group.lines("closed"), "the agent itself has ended too"


def test_event_outlasting_drain_is_redelivered(
    new_group: Callable[..., Group],
) -> None:
    def outlast(group: Group) -> None:
        gate = group.folder / "gate"
        group.produce([b"", f"wait {gate}".encode()])
        worker = group.start()
        wait_until(lambda: (0, 1) in group.started(), "the event that waits")
        assert group.stop(worker) == 0
        assert group.committed() == {0: 1}
        gate.touch()
        worker = group.start()
        wait_until(lambda: group.finished()[0, 1] == 1, "the event again")
        assert group.stop(worker) == 0
        assert group.committed() == {0: 2}

    soon = {"STOP_DRAIN": 1.0}
    with_handle = new_group(in_flight=2, constants=soon)
    acknowledged_by_going_on = new_group(constants=soon)
    at_once(outlast, with_handle, acknowledged_by_going_on)
