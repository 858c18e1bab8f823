"""Rebuilds a partition of the progress table from the log, with the same fold, beside the live fold.

1. A scan of the log finds the requests that the table should have: most of those ever made were evicted.
2. They, and the requests that the table has, are folded apart from the table, in bounded batches.
3. When a batch has nearly reached the end of the log, the events that the live fold takes about its requests are
   tapped. When it has read up to where the tap begins, it folds the tapped events and corrects the table, a few
   requests at a time and without yielding to the live fold in between. So no event is missed, and none waits.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, TypeVar

from infra.settings import Settings
from streams.events.base import Event
from streams.log.reader import LogReader
from streams.progress.partition_log import Ends, PartitionLog
from streams.progress.shadow import TAPPED_EVENTS, Shadow
from streams.progress.store import apply, fold, split_key
from streams.progress.survivors import Survivors, survivors
from streams.request.lifecycle import Tombstone

REQUESTS_PER_BATCH = 10_000
CHUNKS_PER_BATCH = 20_000
"""Bounds of a batch that is folded apart from the table: some 30 MB."""
ROUNDS = 20
REQUESTS_AT_ONCE = 100  # are compared until other tasks of the event loop get their turn
INTERRUPTION_CHECK = 0.2  # seconds
CLEAN_UP_SECONDS = 2.0
T = TypeVar("T")


class RebuildError(Exception):
    """A partition can't be rebuilt; the message says why."""


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
        """Correct a batch's records in the table by the log. Raises RebuildError if it can't keep up."""
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
                shadow.open_tap()  # first: events taken before this are before the ends
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
        log = PartitionLog(settings, reader, partition)
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
