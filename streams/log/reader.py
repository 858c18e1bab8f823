"""Bounded reader of the log: whole partitions in batches, without a consumer group and without agents.

It reads thousands of records at a time where an agent reads one: a rebuild runs the same folds many times faster, and
changes no committed offsets.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import TypeAlias, TypeVar

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, OffsetOutOfRangeError
from aiokafka.partitioner import DefaultPartitioner

from infra.errors import ExplainedError
from infra.kafka.admin import admin_client, committed_offsets, partitions_of
from infra.kafka.client import connection_options, start_client, stop_client, unreachable
from infra.settings import Settings

Record: TypeAlias = ConsumerRecord[bytes, bytes]
T = TypeVar("T")

BATCH = 5000
SILENCE_SECONDS = 30.0  # timeout of a read that gets no records although some remain
# The clocks of two machines may differ by this much, so an event may be dated before its cause.
CLOCK_SKEW = timedelta(minutes=1)


class RecordsDeletedError(ExplainedError):
    """A topic was truncated or created again while it was read."""


def groupless_consumer(settings: Settings, reset: str = "none") -> AIOKafkaConsumer:
    """``reset``: where to resume if a topic is truncated or created again; at the end, records would be skipped."""
    return AIOKafkaConsumer(
        **connection_options(settings),
        enable_auto_commit=False,
        max_partition_fetch_bytes=4 * 1024 * 1024,
        auto_offset_reset=reset,
    )


@asynccontextmanager
async def _consumer(settings: Settings) -> AsyncIterator[AIOKafkaConsumer]:
    consumer = groupless_consumer(settings)
    try:
        try:
            await start_client(consumer, SILENCE_SECONDS)
        except (KafkaError, OSError, TimeoutError) as error:
            raise unreachable(settings, error) from None
        yield consumer
    finally:
        await stop_client(consumer.stop, SILENCE_SECONDS)


class LogReader:
    """Reads partitions up to the end that they have when the reading begins."""

    def __init__(self, settings: Settings, consumer: AIOKafkaConsumer) -> None:
        self._settings = settings
        self._consumer = consumer

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings) -> AsyncIterator["LogReader"]:
        """A reader that is connected, or KafkaUnavailableError."""
        async with _consumer(settings) as consumer:
            yield cls(settings, consumer)

    async def partitions(self, topic: str) -> list[TopicPartition]:
        """All partitions of a topic, in order."""
        return await self._asking_cluster(lambda admin: partitions_of(admin, topic))

    async def committed(self, group: str, topic: str) -> dict[TopicPartition, int]:
        """How far a consumer group has got in each partition of a topic; -1 where it has not begun."""

        async def ask(admin: AIOKafkaAdminClient) -> dict[TopicPartition, int]:
            return await committed_offsets(admin, group, await partitions_of(admin, topic))

        return await self._asking_cluster(ask)

    async def _asking_cluster(self, ask: Callable[[AIOKafkaAdminClient], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(SILENCE_SECONDS), admin_client(self._settings) as admin:
                return await ask(admin)
        except (KafkaError, TimeoutError) as error:
            raise unreachable(self._settings, error) from None

    async def partition_of(self, topic: str, key: bytes) -> TopicPartition:
        """The partition of a key, by the partitioner of all our producers."""
        return partition_of(key, await self.partitions(topic))

    async def offset_at(self, partition: TopicPartition, time: datetime) -> int:
        """From where on all that was written since a time is found, whichever machine dated it.

        That may begin ``CLOCK_SKEW`` early; `exact_offset_at` doesn't.
        """
        return await self.exact_offset_at(partition, time - CLOCK_SKEW)

    async def exact_offset_at(self, partition: TopicPartition, time: datetime) -> int:
        """The offset of the first record dated at or after a time; the end where there is none."""
        # Kafka takes no time from before 1970, which an event may have.
        found = await self._consumer.offsets_for_times({partition: max(0, int(time.timestamp() * 1000))})
        entry = found[partition]
        return int(entry.offset) if entry is not None else (await self.ends([partition]))[partition]

    async def ends(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return dict(await self._consumer.end_offsets(list(partitions)))

    async def read(
        self,
        starts: Mapping[TopicPartition, int | None],
        ends: Mapping[TopicPartition, int] | None = None,
        *,
        batch: int = BATCH,
    ) -> AsyncIterator[list[Record]]:
        """The records from ``starts`` (None: the first there is) up to ``ends`` (default: those of now), in batches.

        Within a partition they come in order. Raises KafkaUnavailableError when nothing
        comes for ``SILENCE_SECONDS``, RecordsDeletedError where a topic was truncated meanwhile.
        """
        partitions = list(starts)
        if not partitions:
            return
        last = dict(ends) if ends is not None else await self.ends(partitions)
        first = await self._consumer.beginning_offsets(partitions)
        # A new consumer: aiokafka 0.14 may hang in stop() when a consumer was assigned a second time
        # (Fetcher._fetch_requests_routine swallows the cancellation while it cleans up after the first).
        async with _consumer(self._settings) as consumer:
            consumer.assign(partitions)
            for partition in partitions:
                consumer.seek(partition, max(starts[partition] or 0, first[partition]))
            loop = asyncio.get_running_loop()
            heard = loop.time()
            while waiting := [p for p in partitions if await consumer.position(p) < last[p]]:
                try:
                    batches = await consumer.getmany(*waiting, timeout_ms=500, max_records=batch)
                except OffsetOutOfRangeError as error:
                    raise RecordsDeletedError(f"records were deleted before they were read: {error}") from None
                for partition, records in batches.items():
                    yield [record for record in records if record.offset < last[partition]]
                    heard = loop.time()  # without the caller's time for a batch
                if loop.time() - heard > SILENCE_SECONDS:
                    raise unreachable(self._settings, TimeoutError(f"nothing came for {SILENCE_SECONDS:g} s"))


def partition_of(key: bytes, partitions: list[TopicPartition]) -> TopicPartition:
    """The partition of a key among all partitions of its topic."""
    number: int = DefaultPartitioner()(key, [p.partition for p in partitions], [p.partition for p in partitions])
    return TopicPartition(partitions[0].topic, number)
