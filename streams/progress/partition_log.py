"""The log of a partition of the progress table."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime

from aiokafka import TopicPartition

from infra.settings import Settings
from streams.events.base import Event
from streams.events.registry import decode_or_none
from streams.log.reader import LogReader
from streams.log.topics import Topics

EVENTS_AT_ONCE = 50
RECORDS_AT_ONCE = 500
Ends = dict[str, int]
"""Topic → offset in the partition that is rebuilt."""


class PartitionLog:
    """The log of the progress table's partition. ``topics``: in the order in which they are folded."""

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
        """The events of a topic between two offsets, each with the time of its record."""
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
