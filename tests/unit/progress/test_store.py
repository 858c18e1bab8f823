"""The progress table: codecs, constant writes, and what a crash between any two writes leaves."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streams.events.base import Event
from streams.events.images import ImageProcessed
from streams.events.progress import ProgressEvicted
from streams.events.requests import OutputCsvRequested
from streams.progress.store import (
    apply,
    decode_row,
    decode_tally,
    encode_row,
    encode_tally,
    fold,
    orphaned,
    read_row,
    read_tallies,
    row_key,
    split_key,
    tally_key,
)
from streams.request import tally as tally_module
from streams.request.lifecycle import RequestState, Tombstone, must_restore
from streams.request.reactions import reactions
from streams.request.tally import EMPTY, Sums, add_up, chunk_count
from tests.support.examples import NOON, REQUEST_ID, completed, created, failed, processed, requested
from tests.unit.request.folded import Folded
from tests.unit.request.stories import (
    FAILING,
    PROCESSED,
    RANDOMS,
    RECEIVER,
    TOTALS,
    cancelled,
    evicted,
    rerequested,
    result,
    retried,
    shuffled,
    story,
)

COMPLETED = completed(webhook_url=RECEIVER, total=1, succeeded=1, failed=0)

Table = dict[bytes, bytes]


def take(events: Iterable[Event], table: Table) -> list[OutputCsvRequested]:
    """What the progress app does with its input; returns the output CSVs that are due."""
    due: list[Event] = []
    for event in events:
        folded = fold(event, table.get)
        apply(folded.changes, table)
        due += reactions(event, folded.entry, folded.tally, partial(read_tallies, folded.entry, table.get))
    return [event for event in due if isinstance(event, OutputCsvRequested)]


def changes(events: Iterable[Event], table: Table) -> int:
    """How many changes a redelivery of the events makes."""
    return sum(len(fold(event, table.get).changes) for event in events)


def sums(table: Table, run: int = 0) -> Sums:
    return add_up((decode_tally(value) for key, value in table.items() if split_key(key)[1] is not None), run)


# --- codecs


@given(RANDOMS, st.integers(1, 20), FAILING)
def test_row_and_tallies_are_read_as_written(random: Random, total: int, failing: float) -> None:
    told = story(random, total, failing=failing, retry=True)
    facts = [COMPLETED, cancelled(), retried(2), rerequested(1, 1)]
    request = Folded(*told.events, *random.sample(facts, k=random.randint(0, len(facts))))
    assert decode_row(encode_row(request.state)) == request.state
    assert [decode_tally(encode_tally(tally)) for tally in request.tallies] == request.tallies


def test_tombstone_is_read_as_written() -> None:
    tombstone = Tombstone(7, NOON)
    assert decode_row(encode_row(tombstone)) == tombstone


def test_missing_tally_is_empty() -> None:
    assert decode_tally(None) == EMPTY


def test_requests_do_not_touch_each_other() -> None:
    table: Table = {}
    take([created("one"), created("two"), result(0, succeeds=True).model_copy(update={"request_id": "one"})], table)
    assert {split_key(key) for key in table} == {("one", None), ("one", 0), ("two", None)}


# --- any order, any repetition


@given(RANDOMS, TOTALS, FAILING, st.sampled_from([0.0, 0.5]))
def test_any_order_gives_the_same_bytes(random: Random, total: int, failing: float, repeats: float) -> None:
    told = story(random, total, failing=failing, retry=True)
    in_order: Table = {}
    take(told.events, in_order)
    table: Table = {}
    take(shuffled(random, told.events, repeats), table)
    assert table == in_order
    assert changes(told.events, table) == 0, "a repeat writes nothing"


@given(RANDOMS, TOTALS, FAILING)
def test_counts_are_those_of_the_arrived_results(random: Random, total: int, failing: float) -> None:
    told = story(random, total, failing=failing, retry=False)
    cut = random.randint(0, total)
    arrived = shuffled(random, told.first, 0)[:cut]
    table: Table = {}
    take(arrived, table)
    done = [result for result in arrived if isinstance(result, ImageProcessed)]
    counted = sums(table)
    assert (counted.succeeded, counted.failed, counted.settled) == (len(done), cut - len(done), cut)
    assert counted.input_bytes == sum(result.input_bytes for result in done)


# --- crashes


@dataclass(frozen=True)
class Crash:
    """The process dies at an event (counted over all deliveries).

    ``stage``: before its changes are written, before its reactions are published, or before the offset is committed.
    ``uncommitted``: how many events back the last commit was. ``unsent``: how many of the changes written since
    had not reached the changelog.
    """

    step: int
    stage: int
    uncommitted: int
    unsent: int


CRASHES = st.lists(
    st.builds(Crash, st.integers(0, 60), st.integers(0, 2), st.integers(0, 20), st.integers(0, 20)), max_size=6
)


def replayed(changelog: Iterable[tuple[int, bytes, bytes | None]]) -> Table:
    table: Table = {}
    for _, key, value in changelog:
        apply({key: value}, table)
    return table


def take_with_crashes(events: Sequence[Event], crashes: Sequence[Crash]) -> tuple[Table, list[OutputCsvRequested]]:
    """The progress app under ``kill -9``: its table is what the changelog has, its input goes on at the last commit."""
    changelog: list[tuple[int, bytes, bytes | None]] = []  # with the place of the event that wrote it
    due: list[OutputCsvRequested] = []
    plan = {crash.step: crash for crash in crashes}
    place = step = 0
    while place < len(events):
        crash = plan.pop(step, None)
        step += 1
        event = events[place]
        table = replayed(changelog)
        if crash is None or crash.stage > 0:
            folded = fold(event, table.get)
            assert len(folded.changes) <= 1, "a kill between two writes would tear them apart"
            changelog += [(place, key, value) for key, value in folded.changes.items()]
        if crash is None or crash.stage > 1:
            due += take([event], table)
        if crash is None:
            place += 1
            continue
        place = max(0, place - crash.uncommitted)
        committed = sum(written_at < place for written_at, _, _ in changelog)
        del changelog[max(committed, len(changelog) - crash.unsent) :]
    return replayed(changelog), due


@settings(max_examples=200)
@given(RANDOMS, st.integers(1, 20), FAILING, st.booleans(), CRASHES)
# The last image's tally is written, and the process dies before it publishes the reaction.
@example(Random(1), 1, 0.0, False, [Crash(1, 1, 0, 0)])
@example(Random(1), 9, 0.0, False, [Crash(9, 1, 0, 0), Crash(10, 1, 5, 0)])
def test_killed_process_counts_every_image_once(
    random: Random, total: int, failing: float, retry: bool, crashes: list[Crash]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tally_module, "IMAGES_PER_CHUNK", 4)  # several chunks without thousands of events
        told = story(random, total, failing=failing, retry=retry)
        events = shuffled(random, told.events, 0.2)
        undisturbed: Table = {}
        due_undisturbed = take(events, undisturbed)
        table, due = take_with_crashes(events, crashes)
    assert table == undisturbed
    assert due[-1] == due_undisturbed[-1]
    assert {event.id for event in due} == {event.id for event in due_undisturbed}
    assert (due[-1].succeeded, due[-1].failed, due[-1].input_bytes, due[-1].output_bytes) == told.expected()


# --- sizes


@pytest.mark.slow
@pytest.mark.parametrize("total", [1_000, 10_000, 100_000])
def test_reads_and_writes_per_image_are_constant(total: int) -> None:
    """Every image of the request, one after the other, each with the largest numbers."""
    table: Table = {}
    reads = 0

    def read(key: bytes) -> bytes | None:
        nonlocal reads
        reads += 1
        return table.get(key)

    take([created(total=total)], table)
    row = len(table[row_key(REQUEST_ID)])
    largest = max_reads = 0
    due: list[Event] = []
    template = PROCESSED.model_copy(update={"input_bytes": 2**40 - 1, "output_bytes": 2**40 - 1})
    for index in range(total):
        # model_copy would take most of this test's time
        event = ImageProcessed.model_construct(**{**template.__dict__, "index": index})
        reads = 0
        folded = fold(event, read)
        ((key, value),) = folded.changes.items()
        assert value is not None
        apply(folded.changes, table)
        due += reactions(event, folded.entry, folded.tally, partial(read_tallies, folded.entry, read))
        largest = max(largest, len(key) + len(value))
        if (index + 1) % 1000:
            max_reads = max(max_reads, reads)
    key_length = len(tally_key(REQUEST_ID, chunk_count(total)))
    assert largest <= 36 + 250 + key_length, f"{largest} bytes for one image"
    assert max_reads == 2, "the row and the tally"
    (output,) = due
    assert isinstance(output, OutputCsvRequested)
    assert output.input_bytes == total * (2**40 - 1)
    assert len(table[row_key(REQUEST_ID)]) == row, "the row has nothing of single images"
    assert len(table) == 1 + total // 1000


# --- eviction


@pytest.mark.slow
@given(RANDOMS, st.sampled_from([1, 999, 1000, 2001]))
def test_late_events_do_not_resurrect_evicted_request(random: Random, total: int) -> None:
    told = story(random, total, failing=0.5, retry=True)
    run = len(told.retry)
    done = [*told.events, COMPLETED, cancelled()]
    table: Table = {}
    take([*done, evicted("evicted", run)], table)
    assert list(table) == [row_key(REQUEST_ID)], "only a tombstone stays"
    assert isinstance(read_row(REQUEST_ID, table.get), Tombstone)
    late = [*done, evicted("evicted", run)]
    assert changes(late, table) == 0
    assert take(late, table) == []
    take([evicted("tombstone_dropped", run)], table)
    assert table == {}


def test_request_is_restored_from_its_events_in_topic_order() -> None:
    table: Table = {}
    done: list[Event] = [
        created(),
        result(0, succeeds=False),
        COMPLETED,
        evicted("evicted"),
        evicted("tombstone_dropped"),
    ]
    take(done, table)
    assert must_restore(read_row(REQUEST_ID, table.get), retried(1))
    take([created(), COMPLETED, retried(1), result(0, succeeds=False), *done[3:]], table)
    row = read_row(REQUEST_ID, table.get)
    assert isinstance(row, RequestState)
    assert not must_restore(row, retried(1))
    assert row.run == 1
    assert sums(table, run=1) == Sums(updated_ms=sums(table).updated_ms)


def test_redelivery_completes_an_interrupted_eviction() -> None:
    told = story(Random(3), 2001, failing=0.1, retry=False)
    whole: Table = {}
    take([*told.events, COMPLETED], whole)
    evictions = list(fold(evicted("evicted"), whole.get).changes.items())
    assert len(evictions) == 4
    for written in range(len(evictions) + 1):
        table = dict(whole)
        apply(dict(evictions[:written]), table)
        take([evicted("evicted")], table)
        assert list(table) == [row_key(REQUEST_ID)]


def orphans_at(table: Table, days: int) -> list[ProgressEvicted]:
    return list(orphaned(table.items(), table.get, NOON + timedelta(days=days)))


def test_orphaned_tallies_are_evicted_after_a_week() -> None:
    table: Table = {}
    take([*(processed(requested(index=index)) for index in (5, 1005)), failed(requested(index=7005))], table)
    take([processed(requested("young")).model_copy(update={"time": NOON + timedelta(days=3)})], table)
    take([created("whole"), processed(requested("whole"))], table)
    assert orphans_at(table, 7) == []
    (gone,) = orphans_at(table, 8)
    assert (gone.request_id, gone.stage, gone.images) == (REQUEST_ID, "orphaned", 8000)
    take([gone], table)
    assert {split_key(key) for key in table} == {("young", 0), ("whole", 0), ("whole", None)}
    assert changes([gone], table) == 0


def test_tallies_of_a_late_request_are_not_evicted() -> None:
    table: Table = {}
    take([processed(requested())], table)
    (gone,) = orphans_at(table, 8)
    take([created()], table)
    assert orphans_at(table, 8) == []
    assert changes([gone], table) == 0


def test_row_does_not_grow_with_the_header() -> None:
    short, long = (RequestState.of(created(header=(cell,) * 200)) for cell in ("", "x" * 80))
    assert len(encode_row(long)) == len(encode_row(short)) < 1000
