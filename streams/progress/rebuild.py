"""Rebuilds a partition of the progress table from the log, with the same fold, beside the live fold.

1. A scan of the log finds the requests that the table should have: most of those ever made were evicted.
2. They, and the requests that the table has, are folded apart from the table, in bounded batches.
3. When a batch has nearly reached the end of the log, the events that the live fold takes about its requests are
   tapped. When it has read up to where the tap begins, it folds the tapped events and corrects the table, a few
   requests at a time and without yielding to the live fold in between. So no event is missed, and none waits.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeVar

from aiokafka import TopicPartition

from infra.settings import Settings
from streams.events.base import Event
from streams.events.progress import ProgressEvicted
from streams.events.registry import decode_or_none
from streams.events.requests import RequestCreated, RequestRetried
from streams.log.reader import LogReader
from streams.log.topics import Topics
from streams.progress.store import Changes, apply, decode_row, encode_row, fold, read_row, row_key, split_key, tally_key
from streams.request.lifecycle import RequestState, Tombstone, must_restore
from streams.request.tally import chunk_count

REQUESTS_PER_BATCH = 10_000
CHUNKS_PER_BATCH = 20_000
"""Bounds of a batch that is folded apart from the table: some 30 MB."""
SCAN_WINDOW = 50_000  # records
TAPPED_EVENTS = 10_000
"""Events of the live fold that wait for the rebuild; with more of them the log is read further first."""
ROUNDS = 20
REQUESTS_AT_ONCE = 100  # are compared until other tasks of the event loop get their turn
EVENTS_AT_ONCE = 50
RECORDS_AT_ONCE = 500
INTERRUPTION_CHECK = 0.2  # seconds
CLEAN_UP_SECONDS = 2.0

T = TypeVar("T")
Ends = dict[str, int]
"""Topic → offset in the partition that is rebuilt."""


class RebuildError(Exception):
    """A partition can't be rebuilt; the message says why."""


class PartitionLog(Protocol):
    """The log of the progress table's partition. ``topics``: in the order in which they are folded."""

    topics: tuple[str, ...]
    requests: str
    progress: str

    async def ends(self) -> Ends: ...

    async def starts(self, since: datetime | None) -> Ends: ...

    async def starts_of(self, topic: str, since: datetime) -> int: ...

    def events(
        self, topic: str, start: int, end: int, is_wanted: Callable[[str], bool] | None
    ) -> AsyncIterator[tuple[datetime, Event]]: ...


class KafkaPartitionLog:
    """The log of a partition, on Kafka."""

    def __init__(self, settings: Settings, reader: LogReader, partition: int, *, leaves_time: bool = False) -> None:
        """``leaves_time``: sleep as long as the work takes, so that a live fold on the same event loop goes on."""
        self._leaves_time = leaves_time
        names = Topics(settings.topic_prefix)
        self._reader = reader
        self._partition = partition
        self.topics = names.of_progress
        self.requests = names.requests
        self.progress = names.progress

    def _of(self, topic: str) -> TopicPartition:
        return TopicPartition(topic, self._partition)

    async def ends(self) -> Ends:
        """The ends of the topics. That of the requests comes last, as other events follow from a RequestCreated."""
        others = [topic for topic in self.topics if topic != self.requests]
        found = await self._reader.ends(map(self._of, others))
        found |= await self._reader.ends([self._of(self.requests)])
        return {partition.topic: end for partition, end in found.items()}

    async def starts(self, since: datetime | None) -> Ends:
        if since is None:
            return dict.fromkeys(self.topics, 0)
        return {topic: await self.starts_of(topic, since) for topic in self.topics}

    async def starts_of(self, topic: str, since: datetime) -> int:
        return await self._reader.offset_at(self._of(topic), since)

    async def events(
        self, topic: str, start: int, end: int, is_wanted: Callable[[str], bool] | None
    ) -> AsyncIterator[tuple[datetime, Event]]:
        if start >= end:
            return
        partition = self._of(topic)
        resumed = time.monotonic()
        async for records in self._reader.read({partition: start}, {partition: end}, batch=RECORDS_AT_ONCE):
            for number, record in enumerate(records):
                if is_wanted is None or is_wanted((record.key or b"").decode(errors="replace")):
                    event = decode_or_none(record.value)
                    if event is not None:
                        yield datetime.fromtimestamp(record.timestamp / 1000, UTC), event
                if number % EVENTS_AT_ONCE == 0:
                    await asyncio.sleep(time.monotonic() - resumed if self._leaves_time else 0)
                    resumed = time.monotonic()


class _Found(NamedTuple):
    created_at: datetime
    total: int
    run: int
    tombstone: Tombstone | None


class Survivors:
    """The requests of a partition that were not evicted, and the tombstones that were not dropped. Pure.

    It may have a request that was evicted after all, for instance if the clocks of two machines differ.
    """

    def __init__(self) -> None:
        self._found: dict[str, _Found] = {}

    def __len__(self) -> int:
        return len(self._found)

    def add(self, event: Event) -> None:
        """Events of both topics in about the order of their times."""
        known = self._found.get(event.request_id)
        match event:
            case RequestCreated() if known is None:
                self._found[event.request_id] = _Found(event.time, event.total, 0, None)
            case RequestRetried() if known is None:
                self._found[event.request_id] = _Found(event.created_at, 1, event.run, None)
            case RequestRetried() if known is not None and event.run > known.run:
                kept = known.tombstone is not None and known.tombstone.run >= event.run
                self._found[event.request_id] = known._replace(
                    run=event.run, tombstone=known.tombstone if kept else None
                )
            case ProgressEvicted(stage="evicted") if known is not None and event.run >= known.run:
                if known.tombstone is None:
                    self._found[event.request_id] = known._replace(tombstone=Tombstone(event.run, event.time))
            case ProgressEvicted(stage="tombstone_dropped") if known is not None and known.tombstone is not None:
                if event.run >= known.tombstone.run:
                    del self._found[event.request_id]
            case _:
                pass

    def tombstones(self) -> dict[str, Tombstone]:
        return {name: found.tombstone for name, found in self._found.items() if found.tombstone is not None}

    def live(self) -> Iterator[tuple[datetime, str, int]]:
        """Creation, id and number of chunks of the others, oldest first."""
        rest = ((each.created_at, name, chunk_count(each.total)) for name, each in self._found.items() if not each[3])
        yield from sorted(rest)


async def survivors(log: PartitionLog, ends: Mapping[str, int]) -> tuple[Survivors, int]:
    """Scan the log up to ``ends``, and count the events. The topics are read in windows of time, so that a request
    is forgotten as soon as it was: the memory is that of the requests that were in the table at one time.
    """
    found = Survivors()
    events = requests = evictions = 0
    while requests < ends[log.requests] or evictions < ends[log.progress]:
        end = min(requests + SCAN_WINDOW, ends[log.requests])
        until: datetime | None = None
        async for written, event in log.events(log.requests, requests, end, None):
            events += 1
            found.add(event)
            until = written
        requests = end
        stop = ends[log.progress]
        if requests < ends[log.requests]:
            if until is None:
                continue
            stop = min(stop, max(evictions, await log.starts_of(log.progress, until)))
        async for _, event in log.events(log.progress, evictions, stop, None):
            events += 1
            found.add(event)
        evictions = stop
    return found, events


class Shadow:
    """Some requests, folded from the log apart from the table.

    ``tap`` gets the events about them that the live fold takes meanwhile. ``restored``: requests that are retried
    after their eviction, with their creation: the live fold restores them from the log, and so must this.
    ``chunks``: how many tallies of a request may be in the table or here.
    """

    def __init__(self, requests: Iterable[str], tombstones: Mapping[str, Tombstone]) -> None:
        self.requests = set(requests)
        self.records: dict[bytes, bytes] = {row_key(name): encode_row(tombstones[name]) for name in tombstones}
        self.restored: dict[str, datetime] = {}
        self._tapped: list[Event] | None = None
        self.chunks: dict[str, int] = {}

    def fold(self, event: Event) -> None:
        if event.request_id not in self.requests or event.request_id in self.restored:
            return
        if isinstance(event, RequestRetried) and must_restore(read_row(event.request_id, self.records.get), event):
            self.restored[event.request_id] = event.created_at
            return
        changes = fold(event, self.records.get).changes
        apply(changes, self.records)
        for key in changes:
            self.saw(key)

    def saw(self, key: bytes) -> None:
        """Note a key of the table or of these records: its request may have tallies up to this chunk."""
        name, chunk = split_key(key)
        if chunk is not None and name in self.requests:
            self.chunks[name] = max(self.chunks.get(name, 0), chunk + 1)

    def open_tap(self) -> None:
        self._tapped = []

    def close_tap(self) -> None:
        self._tapped = None

    def tap(self, event: Event) -> None:
        """An event that the live fold has just taken."""
        if self._tapped is not None and event.request_id in self.requests and len(self._tapped) <= TAPPED_EVENTS:
            self._tapped.append(event)

    def drain(self) -> bool:
        """Fold the tapped events; False if there were too many to keep."""
        tapped, self._tapped = self._tapped or [], []
        if len(tapped) > TAPPED_EVENTS:
            return False
        for event in tapped:
            self.fold(event)
        return True

    def corrections(self, request_id: str, table: Mapping[bytes, bytes]) -> Changes:
        """The changes that make a request's records in the table into these."""
        if request_id in self.restored:
            return {}
        row = table.get(row_key(request_id))
        try:
            state = None if row is None else decode_row(row)
        except ValueError:  # not written by a worker: it is replaced
            state = None
        chunks = max(self.chunks.get(request_id, 0), chunk_count(state.total) if isinstance(state, RequestState) else 0)
        # The row last: a row means that its request is in the table.
        keys = [*(tally_key(request_id, chunk) for chunk in range(chunks)), row_key(request_id)]
        return {key: self.records.get(key) for key in keys if self.records.get(key) != table.get(key)}


@dataclass
class Batch:
    """Requests that are folded together, and the offsets up to which they are."""

    shadow: Shadow
    starts: Ends


class Rebuild:
    """Folds a partition's requests from the log, batch after batch; corrects the table, if it has one."""

    def __init__(
        self,
        log: PartitionLog,
        only_request: str | None = None,
        require_ownership: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """``require_ownership`` is awaited before each write to the table."""
        self._log = log
        self._require_ownership = require_ownership
        self._only = only_request
        self._shadow: Shadow | None = None
        self.events = 0
        self.changed = 0

    def tap(self, event: Event) -> None:
        """To be called with each event that the live fold has taken, before it yields to anything else."""
        if self._shadow is not None:
            self._shadow.tap(event)

    async def batches(self, keys: Iterable[bytes]) -> AsyncIterator[Batch]:
        """Batches that are folded up to about the end of the log. ``keys``: those that the table has."""
        chunks: dict[str, int] = {}
        for number, key in enumerate(keys):
            name, chunk = split_key(key)
            chunks[name] = max(chunks.get(name, 0), 0 if chunk is None else chunk + 1)
            if number % 1000 == 0:
                await asyncio.sleep(0)
        if self._only is not None:
            chunks = {self._only: chunks.get(self._only, 0)}
            found = Survivors()
        else:
            ends = await self._log.ends()
            found, self.events = await survivors(self._log, ends)
        known: set[str] = set()
        tombstones = found.tombstones()
        for names in _batched(sorted(tombstones), REQUESTS_PER_BATCH):
            known.update(names)
            yield await self._folded(names, {name: tombstones[name] for name in names}, chunks, ends)
        for since, names in _by_age(found.live()):
            known.update(names)
            yield await self._folded(names, {}, chunks, await self._log.starts(since))
        # These have no RequestCreated yet, so the whole log is read for them; the newest are of uploads in flight.
        for names in _batched(sorted(chunks.keys() - known), REQUESTS_PER_BATCH):
            yield await self._folded(names, {}, chunks, await self._log.starts(None))

    async def _folded(
        self, names: Iterable[str], tombstones: Mapping[str, Tombstone], chunks: Mapping[str, int], starts: Ends
    ) -> Batch:
        shadow = Shadow(names, tombstones)
        shadow.chunks = {name: chunks[name] for name in shadow.requests & chunks.keys()}
        ends = await self._log.ends()
        await self._fold(shadow, starts, ends)
        return Batch(shadow, ends)

    async def _fold(self, shadow: Shadow, starts: Ends, ends: Ends) -> None:
        for topic in self._log.topics:  # a request is folded in this order: its RequestCreated first
            async for _, event in self._log.events(topic, starts[topic], ends[topic], shadow.requests.__contains__):
                self.events += 1
                shadow.fold(event)

    async def correct(self, batch: Batch, table: MutableMapping[bytes, bytes]) -> None:
        """Make a batch's records in the table what the log says. Raises RebuildError if it can't keep up."""
        for _ in range(ROUNDS):
            await self._correct(batch, table)
            if not (restored := batch.shadow.restored):
                return
            batch = await self._folded(
                restored, {}, batch.shadow.chunks, await self._log.starts(min(restored.values()))
            )
        raise RebuildError(f"requests are evicted and retried again and again: {', '.join(sorted(restored)[:5])}")

    async def _correct(self, batch: Batch, table: MutableMapping[bytes, bytes]) -> None:
        self._shadow = shadow = batch.shadow
        starts = batch.starts
        try:
            for _ in range(ROUNDS):
                shadow.open_tap()  # first: what was taken before this is before the ends
                ends = await self._log.ends()
                await self._fold(shadow, starts, ends)
                starts = ends
                if await self._apply(shadow, table):
                    return
        finally:
            shadow.close_tap()
            self._shadow = None
        raise RebuildError(f"too many events: {ROUNDS} times more than {TAPPED_EVENTS} came during the last reading")

    async def _apply(self, shadow: Shadow, table: MutableMapping[bytes, bytes]) -> bool:
        for names in _batched(sorted(shadow.requests), REQUESTS_AT_ONCE):
            if self._require_ownership is not None:
                await self._require_ownership()
            if not shadow.drain():
                return False
            for name in names:
                changes = shadow.corrections(name, table)
                apply(changes, table)
                self.changed += len(changes)
            await asyncio.sleep(0)
        return True


def _batched(names: Iterable[str], size: int) -> Iterator[list[str]]:
    rest = iter(names)
    while batch := list(islice(rest, size)):
        yield batch


def _by_age(live: Iterable[tuple[datetime, str, int]]) -> Iterator[tuple[datetime, list[str]]]:
    """Batches of requests, each with the creation of its oldest one."""
    since: datetime | None = None
    names: list[str] = []
    chunks = 0
    for created_at, name, count in live:
        if since is not None and (len(names) == REQUESTS_PER_BATCH or chunks + count > CHUNKS_PER_BATCH):
            yield since, names
            since, names, chunks = None, [], 0
        since = since or created_at
        names.append(name)
        chunks += count
    if since is not None:
        yield since, names


@dataclass(frozen=True)
class Restored:
    """The records of an evicted request as the log has them, and the number of events they are folded from."""

    records: dict[bytes, bytes]
    events: int


async def fold_request(settings: Settings, partition: int, request_id: str, since: datetime) -> Restored:
    """Fold the events of one request; ``since``: its creation.

    It may read further than the live fold has: the events that this folds later are then repeats.
    """
    records: dict[bytes, bytes] = {}
    events = 0
    async with LogReader.open(settings) as reader:
        log = KafkaPartitionLog(settings, reader, partition)
        starts, ends = await log.starts(since), await log.ends()
        for topic in log.topics:
            async for _, event in log.events(topic, starts[topic], ends[topic], request_id.__eq__):
                events += 1
                apply(fold(event, records.get).changes, records)
    return Restored(records, events)


async def unless_interrupted(work: Coroutine[Any, Any, T], interrupted: Callable[[], bool]) -> T | None:
    """The result of ``work``, or None if ``interrupted`` first says that there is no more time for it."""
    task = asyncio.create_task(work)
    try:
        while not (await asyncio.wait({task}, timeout=INTERRUPTION_CHECK))[0]:
            if interrupted():
                task.cancel()
                await asyncio.wait({task}, timeout=CLEAN_UP_SECONDS)
                return None
        return task.result()
    finally:
        task.cancel()
