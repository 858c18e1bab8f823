"""Deduplication after a rebalance: the results that were written shortly before this worker got its partitions.

A killed worker leaves results on the log whose requests are not committed; the next owner of its partitions gets those
requests again. Their results are among the last of the results topic, which is cheap to read, so that no image with a
result is fetched again.
"""

import asyncio

from aiokafka import TopicPartition

from infra.settings import Settings
from streams.events.base import UnreadableEvent
from streams.events.images import ImageFailed, ImageProcessed, ImageRequested
from streams.events.registry import decode
from streams.log.reader import LogReader
from streams.log.topics import Topics

# Per partition. A worker commits every second, and is replaced within some more.
TAIL = 1000

_Attempt = tuple[str, int, int]


class RecentResults:
    """The images whose results were among the last of each partition when the assignment changed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._settled: set[_Attempt] | None = None
        self._expired = 0  # how often
        self._loading = asyncio.Lock()

    def expire(self) -> None:
        """Reload the results before the next look-up: partitions were taken over from another worker."""
        self._settled = None
        self._expired += 1

    async def has_result(self, request: ImageRequested) -> bool:
        """Whether the log already has the image's result. Raises KafkaUnavailableError."""
        async with self._loading:
            while (settled := self._settled) is None:
                expired = self._expired
                loaded = await self._load()
                if self._expired == expired:  # else the last results may be later than those that were read
                    self._settled = loaded
            return (request.request_id, request.index, request.run) in settled

    async def _load(self) -> set[_Attempt]:
        settled = set()
        async with LogReader.open(self._settings) as reader:
            ends = await reader.ends(await reader.partitions(Topics(self._settings.topic_prefix).image_results))
            starts: dict[TopicPartition, int | None] = {tp: max(0, end - TAIL) for tp, end in ends.items()}
            async for records in reader.read(starts, ends):
                for record in records:
                    try:
                        event = decode(record.value)
                    except UnreadableEvent:
                        continue  # among the dead letters already
                    if isinstance(event, ImageProcessed | ImageFailed):
                        settled.add((event.request_id, event.index, event.run))
        return settled
