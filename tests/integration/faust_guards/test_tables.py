"""Z4: a worker's table keeps the keys of partitions that it lost. F6: a commit overtakes deferred writes."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.faust_guards.group import Group, at_once
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


def foreign_keys(group: Group) -> list[str]:
    """Keys that a worker holds of a partition other than that of the event which told of them."""
    return [key for partition, *keys in group.lines("keys") for key in keys if not key.startswith(f"{partition}/")]


def test_table_forgets_keys_of_lost_partitions(new_group: Callable[..., Group]) -> None:
    def share(group: Group) -> None:
        for partition in (0, 1):
            group.produce([b""], partition)
        group.start()
        wait_until(lambda: len(group.finished()) == 2, "the keys of both partitions")
        group.start()
        wait_until(lambda: {("0",), ("1",)} <= {(*each,) for each in group.lines("assigned")}, "one each")
        for partition in (0, 1):
            group.produce([b"keys"], partition)
        wait_until(lambda: len(group.lines("keys")) == 2, "the keys of both workers")

    guarded, unguarded = (new_group(table=True, partitions=2, without=without) for without in (None, "forgetting"))
    at_once(share, guarded, unguarded)

    assert sorted(guarded.lines("keys")) == [["0", "0/0/0"], ["1", "1/0/0"]]
    assert foreign_keys(unguarded)


def test_deferred_changes_share_records_and_precede_later_writes(new_group: Callable[..., Group]) -> None:
    group = new_group(table=True)
    group.produce([*[b"defer"] * 2000, b""])
    worker = group.start()
    wait_until(lambda: len(group.finished()) == 2001, "all events")
    assert group.stop(worker) == 0
    *deferred, last = [(record.key, record.value) for record in group.written()]
    assert len(deferred) < 1000
    assert deferred[-1] == (b"last", b"1999")
    assert last[0] == b"0/2000/0"


def test_commit_follows_the_deferred_writes_of_its_events(new_group: Callable[..., Group]) -> None:
    def kill_after_a_commit(group: Group) -> None:
        group.produce([b"defer"] * 100)
        group.start()
        wait_until(lambda: group.committed().get(0, 0) == 100, "the commit")
        group.kill_all()

    never: dict[str, Any] = {"table": True, "constants": {"FLUSH_INTERVAL": 3600.0}}
    guarded, unguarded = (new_group(**never, without=without) for without in (None, "flush"))
    at_once(kill_after_a_commit, guarded, unguarded)

    assert guarded.written()[-1].value == b"99"
    assert not unguarded.written()
