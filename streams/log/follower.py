"""Follower of partitions from some position on, without end and without a consumer group."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Literal

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from infra.cancellation import no_stray_cancellation
from infra.kafka.client import start_client, stop_client, unreachable
from infra.settings import Settings
from streams.log.reader import Record, RecordsDeletedError, groupless_consumer

logger = structlog.get_logger(__name__)

POLL_MS = 200
RETRY_SECONDS = 1.0
MAX_RECORDS = 10_000


class Follower:
    """Calls ``take`` with the records of each partition, in their order. All methods belong to one event loop.

    ``reset``: policy for a topic that was truncated or created again: ``none`` raises RecordsDeletedError,
    ``earliest`` reads it from its first record.
    """

    def __init__(
        self,
        settings: Settings,
        take: Callable[[TopicPartition, list[Record]], None],
        reset: Literal["none", "earliest"] = "none",
    ) -> None:
        self._settings = settings
        self._take = take
        self._reset = reset
        self._consumer: AIOKafkaConsumer | None = None
        self._positions: dict[TopicPartition, int] = {}
        self._advanced = asyncio.Condition()

    async def start(
        self, positions: Callable[[AIOKafkaConsumer], Awaitable[Mapping[TopicPartition, int]]], timeout: float
    ) -> None:
        """Connect, and seek to ``positions``: ``timeout`` seconds for each. Raises KafkaUnavailableError."""
        self._consumer = consumer = groupless_consumer(self._settings, self._reset)
        try:
            await start_client(consumer, timeout)
            async with asyncio.timeout(timeout):
                self._positions = dict(await positions(consumer))
        except (KafkaError, OSError, TimeoutError) as error:
            raise unreachable(self._settings, error) from None
        consumer.assign(list(self._positions))
        for partition, offset in self._positions.items():
            consumer.seek(partition, offset)

    async def stop(self) -> None:
        if self._consumer is not None:
            await stop_client(self._consumer.stop)

    async def run(self) -> None:
        """Read until cancelled; an outage of Kafka is waited for."""
        with no_stray_cancellation():
            while True:
                try:
                    await self._read_batch()
                except OffsetOutOfRangeError as error:
                    raise RecordsDeletedError(f"a topic was truncated or created again: restart ({error})") from None
                except (KafkaError, OSError) as error:
                    logger.warning("cannot read from Kafka", error=str(error) or type(error).__name__)
                    await asyncio.sleep(RETRY_SECONDS)

    async def _read_batch(self) -> None:
        assert self._consumer is not None
        for partition, records in (await self._consumer.getmany(timeout_ms=POLL_MS, max_records=MAX_RECORDS)).items():
            self._take(partition, records)
            self._positions[partition] = records[-1].offset + 1
        for partition, position in self._positions.items():
            # Compacted records leave gaps: the position is the consumer's, not the last record's.
            self._positions[partition] = max(position, await self._consumer.position(partition))
        async with self._advanced:
            self._advanced.notify_all()

    async def ends(self) -> dict[TopicPartition, int]:
        """Where the partitions end by now. Raises KafkaError; the caller bounds the wait."""
        if self._consumer is None:
            raise KafkaError("not started")
        return dict(await self._consumer.end_offsets(list(self._positions)))

    async def reach(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Wait until all records before these offsets have been read; the caller bounds the wait."""
        async with self._advanced:
            await self._advanced.wait_for(
                lambda: all(self._positions[partition] >= offset for partition, offset in offsets.items())
            )
