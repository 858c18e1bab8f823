"""Lease and fence: a worker that was stopped for longer than its session."""

import signal
from collections.abc import Callable

import pytest

from tests.integration.faust_guards.group import EXIT_SECONDS, Group, at_once
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

EVENTS = 500
LAST = b"%d" % (EVENTS - 1)


def last_value(group: Group) -> bytes | None:
    values: dict[bytes | None, bytes | None] = {record.key: record.value for record in group.written()}
    return values[b"last"]


def test_stopped_worker_changes_nothing_of_successor(new_group: Callable[..., Group]) -> None:
    def stop_until_replaced(group: Group) -> None:
        group.produce([b"last 0.005"] * EVENTS)
        zombie = group.start()
        wait_until(lambda: len(group.finished()) >= 20, "the first events")
        zombie.send_signal(signal.SIGSTOP)
        group.start()
        wait_until(lambda: group.committed() == {0: EVENTS}, "the successor")
        assert last_value(group) == LAST
        zombie.send_signal(signal.SIGCONT)
        if group is unguarded:
            wait_until(lambda: last_value(group) != LAST, "the zombie's write")
        else:
            assert zombie.wait(EXIT_SECONDS) == 70

    guarded, fence_only, lease_only, unguarded = groups = [
        new_group(table=True, without=without) for without in (None, "lease", "fence", "lease fence")
    ]
    at_once(stop_until_replaced, *groups)

    assert [last_value(group) for group in (guarded, fence_only, lease_only)] == [LAST] * 3
    assert "ProducerFenced" in fence_only.output()
    assert "another worker may own" in guarded.output() or "expelled" in guarded.output()
    assert "another worker may own" in lease_only.output() or "expelled" in lease_only.output()
