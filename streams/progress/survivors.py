"""The requests that the progress table should have: a scan of the log without those that were evicted."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import NamedTuple

from streams.events.base import Event
from streams.events.progress import ProgressEvicted
from streams.events.requests import RequestCreated, RequestRetried
from streams.progress.partition_log import PartitionLog
from streams.request.lifecycle import Tombstone
from streams.request.tally import chunk_count

SCAN_WINDOW = 50_000  # records


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
