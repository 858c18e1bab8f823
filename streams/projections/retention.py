"""Removing the files of requests that finished longer ago than ``RETENTION_DAYS``.

The requests topic is its own calendar: a partition is read up to where it was that many days ago, and every
request whose last word there is an ending has had its time. An event says so first, and the files go when that
event is consumed, which Kafka repeats until it is done; so a crash leaves nothing half-removed, and a rebuild
knows what it must not bring back. How far the calendar has been read is the offset of a consumer group without
members.
"""

from collections.abc import Iterable
from datetime import timedelta

import structlog
from aiokafka import TopicPartition

from infra.kafka import commit_offsets
from infra.settings import Settings
from infra.storage import Storage
from streams.event_log import EventLog
from streams.events import (
    Event,
    RequestCancelled,
    RequestCompleted,
    RequestFilesRemoved,
    RequestStopped,
    decode_or_none,
    utc_now,
)
from streams.log_reader import LogReader

log = structlog.get_logger(__name__)

# What a request's last word must be: with any other it is still, or again, being worked on.
ENDINGS: tuple[type[Event], ...] = (RequestCompleted, RequestStopped)
# What neither ends nor begins anything: a cancellation is followed by an ending, or came too late.
ASIDES: tuple[type[Event], ...] = (RequestCancelled,)
REQUESTS_AT_ONCE = 50_000  # what one look remembers of a partition, some 10 MB
GROUP = "retention"


class Finished:
    """Which requests have ended and not been touched since, as the log of a partition is read in order. Pure."""

    def __init__(self) -> None:
        self._ended: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._ended)

    def read_old(self, event: Event) -> None:
        """An event from before the border: an ending makes the request a candidate."""
        if isinstance(event, ENDINGS):
            self._ended[event.request_id] = None
        elif not isinstance(event, ASIDES):
            self._ended.pop(event.request_id, None)

    def read_later(self, event: Event) -> None:
        """An event from after it: the request is in use, ended again or removed already."""
        if not isinstance(event, ASIDES):
            self._ended.pop(event.request_id, None)

    @property
    def requests(self) -> list[str]:
        return list(self._ended)


class Retention:
    """Finds what has had its time, in the partitions that this worker has, and removes it."""

    def __init__(self, settings: Settings, event_log: EventLog, storage: Storage) -> None:
        self._settings = settings
        self._log = event_log
        self._storage = storage
        self._group = event_log.topics.group(GROUP)

    async def look(self, partitions: Iterable[int]) -> int:
        """Write the events about requests whose time is over, in these partitions; returns how many."""
        if self._settings.retention_days is None:
            return 0
        border = utc_now() - timedelta(days=self._settings.retention_days)
        found = 0
        async with LogReader.open(self._settings) as reader:
            begun = await reader.committed(self._group, self._log.topics.requests)
            for partition in (TopicPartition(self._log.topics.requests, number) for number in partitions):
                position, end = max(0, begun[partition]), await reader.exact_offset_at(partition, border)
                while position < end:
                    requests, position = await self._finished(reader, partition, position, end)
                    await self._say_removed(requests)
                    found += len(requests)
                # Also where it is the same: Kafka forgets a group's offsets that are not renewed.
                await commit_offsets(self._settings, self._group, {partition: position})
        return found

    async def _finished(
        self, reader: LogReader, partition: TopicPartition, start: int, end: int
    ) -> tuple[list[str], int]:
        """The requests that have had their time between two offsets, and how far was read for that."""
        finished = Finished()
        position = start
        async for records in reader.read({partition: start}, {partition: end}):
            for record in records:
                if (event := decode_or_none(record.value)) is not None:
                    finished.read_old(event)
            position = records[-1].offset + 1 if records else position
            if len(finished) >= REQUESTS_AT_ONCE:
                break
        else:
            position = end
        if len(finished):
            async for records in reader.read({partition: position}):
                for record in records:
                    if (event := decode_or_none(record.value)) is not None:
                        finished.read_later(event)
        return finished.requests, position

    async def _say_removed(self, requests: list[str]) -> None:
        for written in [await self._log.enqueue(RequestFilesRemoved(request_id=request)) for request in requests]:
            await written

    async def remove(self, event: RequestFilesRemoved) -> None:
        """Remove a request's images and output CSVs; nothing happens where they are gone already."""
        images, csvs = [await self._storage.remove(f"{kind}/{event.request_id}") for kind in ("images", "csv")]
        log.info("files removed", request_id=event.request_id, images=images, csvs=csvs)
