"""The events of topics that are keyed by request, as far as the log goes now."""

from collections.abc import AsyncIterator

from aiokafka import TopicPartition

from infra.settings import Settings
from streams.events.base import Event
from streams.events.registry import decode_or_none
from streams.log.reader import LogReader, partition_of
from streams.log.report import OnEvents
from streams.log.topics import Topics


class LogOfRequests:
    """The events of some topics, about all requests or one, as far as the log goes now."""

    def __init__(self, settings: Settings, request_id: str | None, on_events: OnEvents) -> None:
        self.topics = Topics(settings.topic_prefix)
        self._settings = settings
        self._request_id = request_id
        self._on_events = on_events
        self._passed = 0  # records of the topics that were read before
        self.read = 0

    async def partitions(self) -> list[int]:
        """The numbers of the partitions to be read, the same of every topic that is keyed by request."""
        async with LogReader.open(self._settings) as reader:
            partitions = await reader.partitions(self.topics.requests)
        if self._request_id is not None:
            partitions = [partition_of(self._request_id.encode(), partitions)]
        return [partition.partition for partition in partitions]

    async def events(self, *names: str, only_partition: int | None = None) -> AsyncIterator[list[Event]]:
        """Batch after batch; within a request and a topic in order."""
        async with LogReader.open(self._settings) as reader:
            partitions: list[TopicPartition] = []
            for name in names:
                of_topic = await reader.partitions(name)
                if self._request_id is not None:
                    of_topic = [partition_of(self._request_id.encode(), of_topic)]
                partitions += [tp for tp in of_topic if only_partition in (None, tp.partition)]
            ends = await reader.ends(partitions)
            total = self._passed + sum(ends.values())
            async for records in reader.read(dict.fromkeys(partitions), ends):
                self._passed += len(records)
                self._on_events(self._passed, total)
                wanted = (record for record in records if self._is_wanted(record.key))
                batch = [event for record in wanted if (event := decode_or_none(record.value)) is not None]
                self.read += len(batch)
                yield batch

    def _is_wanted(self, key: bytes | None) -> bool:
        return self._request_id is None or key == self._request_id.encode()
