"""The rebuild beside the live fold: the same table as a fold of the whole log, whatever happens meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.events.base import Event
from streams.events.progress import ProgressEvicted, RequestProjected
from streams.events.requests import RequestCancelled, RequestRetried
from streams.progress import rebuild as rebuild_module
from streams.progress import shadow, survivors
from streams.progress.partition_log import Ends, PartitionLog
from streams.progress.rebuild import Rebuild, RebuildError
from streams.progress.store import apply, encode_row, encode_tally, fold, read_row, row_key, split_key, tally_key
from streams.progress.survivors import Survivors
from streams.request.lifecycle import Tombstone, must_restore
from streams.request.tally import EMPTY
from tests.support.examples import NOON, completed, created, failed, processed, requested

TOPICS = ("requests", "image_results", "webhooks", "progress")
HOUR = timedelta(hours=1)
Table = dict[bytes, bytes]


def life(request_id: str, random: Random, began: datetime) -> list[Event]:
    """A request from its first result on, in the order of causes; it may end anywhere."""
    total = random.choice((1, 3, 1001))
    indexes = {0, total - 1, random.randrange(total)}
    events: list[Event] = []
    for run in range(random.choice((1, 2))):
        at = began + run * 24 * HOUR
        images = [requested(request_id, index, run=run, time=at) for index in indexes]
        results: list[Event] = [random.choice((processed, failed))(image) for image in images]
        first = (
            created(request_id, total=total, time=at)
            if run == 0
            else RequestRetried(request_id=request_id, run=run, created_at=began, time=at)
        )
        results.insert(random.randint(0, 0 if run else len(results)), first)
        events += results
        if random.random() < 0.3:
            events.append(RequestCancelled(request_id=request_id, run=run, time=at))
        events.append(completed(request_id, run=run, total=total, time=at + HOUR))
        events.append(RequestProjected(request_id=request_id, run=run, time=at + HOUR))
        if random.random() < 0.7:
            gone = {"request_id": request_id, "run": run}
            events.append(ProgressEvicted(**gone, stage="evicted", time=at + 2 * HOUR))
            if random.random() < 0.5:
                events.append(ProgressEvicted(**gone, stage="tombstone_dropped", time=at + 200 * HOUR))
    return events[: random.randint(1, len(events))] if random.random() < 0.5 else events


def merged(lives: list[list[Event]], random: Random) -> list[Event]:
    events = []
    rest = [iter(each) for each in lives]
    while rest:
        one = random.choice(rest)
        if (event := next(one, None)) is None:
            rest.remove(one)
        else:
            events.append(event)
            if random.random() < 0.1:
                events.append(event)  # a repetition
    return events


def whole_fold(events: list[Event]) -> Table:
    """The table by a fold of the whole log while nothing else happens, topic after topic."""
    table: Table = {}
    for topic in TOPICS:
        for event in events:
            if event.topic == topic:
                apply(fold(event, table.get).changes, table)
    return table


class World(PartitionLog):
    """A log that grows, and a live fold that follows it, whenever the rebuild waits for anything."""

    topics: tuple[str, ...] = TOPICS
    requests = "requests"
    progress = "progress"

    def __init__(self, events: list[Event], random: Random) -> None:
        self.all = events
        self.random = random
        self.table: Table = {}
        self.written = self.taken = 0
        self.rebuild = Rebuild(self)

    def step(self) -> None:
        for _ in range(self.random.choice((0, 0, 1, 3))):
            self.write()
        for _ in range(self.random.choice((0, 0, 1, 4))):
            if self.taken < self.written:
                self.take()

    def write(self) -> None:
        if self.written == len(self.all):
            return
        event = self.all[self.written]
        # Progress evicts a request only when it has folded its events.
        if isinstance(event, ProgressEvicted):
            while any(each.request_id == event.request_id for each in self.all[self.taken : self.written]):
                self.take()
        self.written += 1

    def take(self) -> None:
        event = self.all[self.taken]
        self.taken += 1
        if isinstance(event, RequestRetried) and must_restore(read_row(event.request_id, self.table.get), event):
            log = [each for each in self.all[: self.written] if each.request_id == event.request_id]
            apply({**whole_fold(log)}, self.table)
        apply(fold(event, self.table.get).changes, self.table)
        self.rebuild.tap(event)

    def of(self, topic: str) -> list[Event]:
        return [event for event in self.all[: self.written] if event.topic == topic]

    async def ends(self) -> Ends:
        ends = {}
        for topic in reversed(TOPICS):  # the requests last
            ends[topic] = len(self.of(topic))
            self.step()
        return ends

    async def starts(self, since: datetime | None) -> Ends:
        return {topic: 0 if since is None else await self.starts_of(topic, since) for topic in TOPICS}

    async def starts_of(self, topic: str, since: datetime) -> int:
        self.step()
        events = self.of(topic)
        return next((number for number, event in enumerate(events) if event.time >= since - HOUR), len(events))

    async def events(
        self, topic: str, start: int, end: int, is_wanted: Callable[[str], bool] | None
    ) -> AsyncIterator[tuple[datetime, Event]]:
        for event in self.of(topic)[start:end]:
            self.step()
            if is_wanted is None or is_wanted(event.request_id):
                yield event.time, event


def damage(world: World, random: Random) -> None:
    """Records that no fold of the log would make. Of an upload under way, a lost tally is found by the reconciler."""
    table, made = world.table, {event.request_id for event in world.of("requests")}
    for key in sorted(key for key in table if split_key(key)[0] in made):
        match random.randrange(6):
            case 0:
                del table[key]
            case 1:
                other = EMPTY._replace(succeeded=7, states=b"\xaa")
                table[key] = encode_tally(other) if b"/" in key else encode_row(Tombstone(0, NOON))
    table[tally_key("nobody", 3)] = encode_tally(EMPTY)
    table[tally_key("r0", 9)] = encode_tally(EMPTY)


@pytest.mark.slow
@settings(max_examples=300)
@given(st.builds(Random, st.integers(0, 2**32)))
def test_rebuild_beside_live_fold_is_the_whole_fold(random: Random) -> None:
    lives = [life(f"r{number}", random, NOON + number * HOUR) for number in range(random.randint(1, 6))]
    world = World(merged(lives, random), random)
    rebuild = world.rebuild
    for _ in range(random.randint(0, len(world.all))):
        world.write()
    while world.taken < world.written and random.random() < 0.98:
        world.take()
    damage(world, random)

    async def run() -> None:
        async for batch in rebuild.batches(list(world.table)):
            await rebuild.correct(batch, world.table)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rebuild_module, "REQUESTS_PER_BATCH", random.choice((1, 2, 100)))
        patch.setattr(rebuild_module, "REQUESTS_AT_ONCE", random.choice((1, 100)))
        patch.setattr(survivors, "SCAN_WINDOW", random.choice((1, 3, 100)))
        asyncio.run(run())
    while world.taken < len(world.all):
        world.write()
        world.take()
    assert world.table == whole_fold(world.all)


def test_too_many_events_at_the_end_give_up(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Event] = [created("r0", total=3), *(processed(requested("r0", index)) for index in (0, 1, 2))] * 500
    world = World(events, Random(1))
    world.rebuild = rebuild = Rebuild(world, "r0")
    monkeypatch.setattr(shadow, "TAPPED_EVENTS", 0)
    monkeypatch.setattr(rebuild_module, "ROUNDS", 2)

    async def run() -> None:
        async for batch in rebuild.batches([row_key("r0")]):
            await rebuild.correct(batch, world.table)

    with pytest.raises(RebuildError, match="too many events"):
        asyncio.run(run())


def test_scan_forgets_requests_whose_tombstone_was_dropped() -> None:
    found = Survivors()
    for event in (
        created("a"),
        created("b"),
        ProgressEvicted(request_id="a", stage="evicted"),
        ProgressEvicted(request_id="b", stage="evicted"),
        ProgressEvicted(request_id="a", stage="tombstone_dropped"),
        RequestRetried(request_id="b", run=1, created_at=NOON),
    ):
        found.add(event)
    assert [name for _, name, _ in found.live()] == ["b"]
    assert (len(found), found.tombstones()) == (1, {})
