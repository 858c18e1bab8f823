"""Z4: a worker's table keeps the keys of partitions that it lost."""

from collections.abc import Callable

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
