"""The events of topics that are keyed by request, as far as the log goes now."""

from collections.abc import AsyncIterator

from aiokafka import TopicPartition

from infra.settings import Settings
from streams.events.base import Event
from streams.events.registry import decode_or_none
from streams.log.reader import LogReader, partition_of
from streams.log.report import OnEvents
from streams.log.topics import Topics
from streams.projections.sorted_events import SortedEvents


class LogOfRequests:
    """The events of some topics, about all requests or one, as far as the log goes now."""

    def __init__(self, settings: Settings, request_id: str | None, on_events: OnEvents) -> None:
        self.topics = Topics(settings.topic_prefix)
        self._settings = settings
        self._request_id = request_id
        self._on_events = on_events
        self._passed = 0  # records of the topics that were read before
        self.read = 0

    async def events(self, *names: str) -> AsyncIterator[list[Event]]:
        """Batch after batch; within a request and a topic in order."""
        async with LogReader.open(self._settings) as reader:
            partitions = [partition for name in names for partition in await self._partitions(reader, name)]
            async for batch in self._batches(reader, partitions):
                yield [event for event, _ in batch]

    async def sorted_events(self, *names: str) -> AsyncIterator[SortedEvents]:
        """Partition after partition, all events of its requests: on disk until the next one."""
        async with LogReader.open(self._settings) as reader:
            for number in [partition.partition for partition in await self._partitions(reader, names[0])]:
                with SortedEvents.open(self._settings.data_dir / "spool") as events:
                    async for batch in self._batches(reader, [TopicPartition(name, number) for name in names]):
                        events.add(batch)
                        del batch  # or the last one would stay in memory
                    yield events

    async def _partitions(self, reader: LogReader, topic: str) -> list[TopicPartition]:
        partitions = await reader.partitions(topic)
        return partitions if self._request_id is None else [partition_of(self._request_id.encode(), partitions)]

    async def _batches(
        self, reader: LogReader, partitions: list[TopicPartition]
    ) -> AsyncIterator[list[tuple[Event, bytes]]]:
        ends = await reader.ends(partitions)
        total = self._passed + sum(ends.values())
        async for records in reader.read(dict.fromkeys(partitions), ends):
            self._passed += len(records)
            self._on_events(self._passed, total)
            wanted = (record.value for record in records if self._is_wanted(record.key))
            batch = [(event, value) for value in wanted if value and (event := decode_or_none(value)) is not None]
            self.read += len(batch)
            yield batch

    def _is_wanted(self, key: bytes | None) -> bool:
        return self._request_id is None or key == self._request_id.encode()
