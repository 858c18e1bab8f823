"""What may be committed, whatever the order in which events finish."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.faust.offsets import PartitionOffsets

pytestmark = pytest.mark.slow

ascending = st.lists(st.integers(0, 10_000), min_size=1, max_size=50, unique=True).map(sorted)


@given(delivered=ascending, data=st.data())
def test_every_event_before_committable_offset_is_finished(delivered: list[int], data: st.DataObject) -> None:
    offsets = PartitionOffsets()
    for offset in delivered:
        offsets.deliver(offset)
    unfinished = set(delivered)
    for offset in data.draw(st.permutations(delivered)):
        offsets.finish(offset)
        unfinished.remove(offset)
        committable = offsets.committable()
        if committable is None:
            assert min(unfinished) == delivered[0]
        else:
            assert all(offset >= committable for offset in unfinished)
            assert all(offset < committable for offset in delivered if offset < min(unfinished, default=20_000))
    assert offsets.committable() == delivered[-1] + 1


def test_first_dropped_offset_is_remembered() -> None:
    offsets = PartitionOffsets()
    for dropped in (9, 7, 8):
        offsets.drop(dropped)
    assert offsets.dropped == 7


def test_offset_is_committable_once() -> None:
    offsets = PartitionOffsets(committed=7)
    assert offsets.committable() is None
    offsets.deliver(7)
    assert offsets.committable() is None
    offsets.finish(7)
    assert offsets.committable() == 8
    offsets.committed = 8
    assert offsets.committable() is None


def test_seek_forgets_earlier_events() -> None:
    offsets = PartitionOffsets(committed=3)
    offsets.finish(5)
    offsets.deliver(3)
    assert offsets.committable() is None
