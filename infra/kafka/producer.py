"""Idempotent producer that replaces its client after a failed write."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import cache, partial
from typing import Any

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError, ProducerClosed
from aiokafka.structs import RecordMetadata

from infra.cancellation import cancel_and_wait
from infra.kafka.client import (
    REQUEST_TIMEOUT_MS,
    KafkaUnavailableError,
    connection_options,
    start_client,
    stop_client,
    unreachable,
)
from infra.observability import metrics
from infra.observability.logs import silenced
from infra.settings import Settings

logger = structlog.get_logger(__name__)

Headers = Iterable[tuple[str, bytes]]

DELIVERY_TIMEOUT = 120.0
"""Seconds to the acknowledgement of a record, as Java's ``delivery.timeout.ms``."""
DELIVERY_CHECK = 0.25  # interval (s) of the check for records that are not acknowledged in time
RECONNECT_TIMEOUT = 5.0
RECONNECT_INTERVAL = 0.5  # seconds between two attempts to connect a new producer
ABORT_TIMEOUT = 5.0
COMPRESSION = "zstd"
"""Codec of all batches: fewer bytes than lz4 and snappy, and less CPU than gzip. aiokafka leaves a batch that doesn't
get smaller as it is."""


class Producer:
    """Idempotent producer with acks=all: a record is acknowledged by all in-sync replicas, in order, or an error.

    aiokafka retries an idempotent batch for ever, and after a batch that failed for good the broker refuses every later
    one of that partition, because of the gap in the sequence numbers. So a record that is not acknowledged within
    ``delivery_timeout`` is an error, and after any error the client is replaced by one with a new producer id.
    """

    def __init__(self, settings: Settings, linger_ms: int = 2, delivery_timeout: float = DELIVERY_TIMEOUT) -> None:
        """``linger_ms``: how long a record waits for others to share its request.

        ``delivery_timeout``: seconds to buffer a record, and seconds from then to its acknowledgement.
        """
        self._settings = settings
        self._linger_ms = linger_ms
        self._delivery_timeout = delivery_timeout
        self._client: AIOKafkaProducer | None = None
        self._usable = asyncio.Event()
        # In the order of their buffering, with its time: the first is the oldest.
        self._pending: dict[asyncio.Future[RecordMetadata], tuple[float, AIOKafkaProducer]] = {}
        self._topics: set[str] = set()
        self._batch_locks: defaultdict[tuple[str, int], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._watch: asyncio.Task[None] | None = None
        self._replacement: asyncio.Task[None] | None = None
        self.problem: str | None = None
        """Why the last write failed; None once a write succeeds, or all partitions can be written again."""

    async def start(self) -> None:
        """Raises KafkaUnavailableError."""
        self._client = await self._connect(REQUEST_TIMEOUT_MS / 1000)
        self._usable.set()
        self._watch = asyncio.create_task(self._expire_deliveries(), name="producer deliveries")

    async def stop(self) -> None:
        """Wait for the acknowledgements of all buffered records, at most ``delivery_timeout``."""
        await cancel_and_wait(*(task for task in (self._watch, self._replacement) if task is not None))
        if self._client is None:
            return
        if not self._usable.is_set():
            await _abort(self._client, ProducerClosed())
            return
        try:
            await stop_client(self._client.stop, self._delivery_timeout + 1)
        except TimeoutError:
            logger.error("producer stopped with unacknowledged records", records=len(self._pending))
            await _abort(self._client, ProducerClosed())

    async def partition_count(self, topic: str) -> int:
        async with self._deadline():
            return len(await (await self._usable_client()).partitions_for(topic))

    async def send(
        self, topic: str, key: bytes | None, value: bytes, headers: Headers = (), *, partition: int | None = None
    ) -> "asyncio.Future[RecordMetadata]":
        """Append a record to the buffer, waiting while it is full; the future is done when the brokers acknowledge.

        Raises KafkaError: the record is not written. If the future raises one, the record may be written or not.
        """
        async with self._deadline():
            client = await self._usable_client()
            future: asyncio.Future[RecordMetadata] = await client.send(
                topic,
                value=value,
                key=key,
                partition=partition,
                timestamp_ms=_now_ms(),
                headers=list(headers),
            )
        self._track(future, client, topic)
        return future

    def new_batch(self) -> "Batch":
        """An empty batch of records for one partition, to be filled in any thread: far cheaper than single records."""
        assert self._client is not None, "the producer is not started"
        return Batch(self._client.create_batch())

    async def send_batch(self, batch: "Batch", topic: str, partition: int) -> "asyncio.Future[RecordMetadata]":
        """Append a batch to the buffer; as `send`. The future has the offset of its first record."""
        # aiokafka 0.14 buffers one batch per partition. It wakes all senders that wait for the buffer, and adds their
        # whole waiting time again at each wake-up, so that they time out after a second.
        async with self._deadline(), self._batch_locks[topic, partition]:
            client = await self._usable_client()
            future: asyncio.Future[RecordMetadata] = await client.send_batch(batch.builder, topic, partition=partition)
        self._track(future, client, topic, batch.count)
        return future

    @asynccontextmanager
    async def _deadline(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._delivery_timeout):
                yield
        except TimeoutError:
            raise KafkaTimeoutError(f"the producer's buffer was full for {self._delivery_timeout:g} s") from None

    async def _usable_client(self) -> AIOKafkaProducer:
        assert self._client is not None, "the producer is not started"
        if not self._usable.is_set():
            await self._usable.wait()
        return self._client

    def _track(
        self, future: "asyncio.Future[RecordMetadata]", client: AIOKafkaProducer, topic: str, count: int = 1
    ) -> None:
        _produced_to(topic).inc(count)
        self._topics.add(topic)
        self._pending[future] = (asyncio.get_running_loop().time(), client)
        future.add_done_callback(partial(self._settle, topic))

    def _settle(self, topic: str, future: "asyncio.Future[RecordMetadata]") -> None:
        _, client = self._pending.pop(future)
        error = None if future.cancelled() else future.exception()
        if error is not None or future.cancelled():
            metrics.PRODUCE_ERRORS.labels(topic).inc()
        if client is not self._client:
            return
        if error is not None:
            self._replace(client, error)
        elif not future.cancelled():
            self.problem = None

    async def _expire_deliveries(self) -> None:
        while True:
            await asyncio.sleep(DELIVERY_CHECK)
            oldest = next(iter(self._pending.values()), None)
            if oldest is not None and asyncio.get_running_loop().time() - oldest[0] > self._delivery_timeout:
                self._replace(oldest[1], KafkaTimeoutError(f"not acknowledged for {self._delivery_timeout:g} s"))

    def _replace(self, client: AIOKafkaProducer, error: BaseException) -> None:
        """Fail the records that the client has not delivered, and connect another one."""
        if client is not self._client or not self._usable.is_set():
            return  # it is being replaced
        if not isinstance(error, MessageSizeTooLargeError):  # which says nothing about Kafka
            self.problem = "the last write failed"
        self._usable.clear()
        logger.warning("replacing the Kafka producer after a failed write", error=repr(error))
        self._replacement = asyncio.create_task(self._reconnect(client, error), name="producer replacement")

    async def _reconnect(self, failed: AIOKafkaProducer, error: BaseException) -> None:
        await _abort(failed, error if isinstance(error, KafkaError) else KafkaError(repr(error)))
        while not self._usable.is_set():
            try:
                self._client = await self._connect(RECONNECT_TIMEOUT)
            except KafkaUnavailableError:
                await asyncio.sleep(RECONNECT_INTERVAL)
            else:
                self._usable.set()
        logger.info("Kafka producer replaced")
        # Without this a process that gets no work, because it is not ready, would never be ready again.
        assert self._client is not None
        await _wait_for_leaders(self._client, self._topics)
        self.problem = None

    async def _connect(self, timeout: float) -> AIOKafkaProducer:
        client = AIOKafkaProducer(
            **connection_options(self._settings),
            acks="all",
            enable_idempotence=True,
            linger_ms=self._linger_ms,
            max_batch_size=128 * 1024,
            compression_type=COMPRESSION,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
        )
        try:
            with silenced("aiokafka") as messages:
                await start_client(client, timeout)
        except (KafkaError, OSError, TimeoutError) as error:
            await stop_client(client.stop)
            raise unreachable(self._settings, error, messages) from None
        except asyncio.CancelledError:
            await stop_client(client.stop)
            raise
        return client


async def _abort(client: AIOKafkaProducer, error: KafkaError) -> None:
    """Stop a producer without another attempt to deliver its records, which fail with ``error``.

    aiokafka's ``stop()`` delivers first, however long that takes. Records in a socket may still be written.
    """
    sender = client._sender.sender_task
    sender.cancel()
    for connection in client.client._conns.values():
        if connection.connected():
            connection._writer.transport.abort()  # drops the buffer for a broker that doesn't read
    async with asyncio.timeout(ABORT_TIMEOUT):
        await client.client.close()
    if (metadata := client.client._md_update_fut) is not None and not metadata.done():
        metadata.set_result(False)  # the sender may wait for it, and nothing else would end that wait
    await asyncio.wait({sender}, timeout=ABORT_TIMEOUT)
    buffer = client._message_accumulator
    # aiokafka expects a batch there when its retry fails.
    buffer._pending_batches.update(batch for batches in buffer._batches.values() for batch in batches)
    buffer.fail_all(error)
    await stop_client(client.stop, ABORT_TIMEOUT)


async def _wait_for_leaders(client: AIOKafkaProducer, topics: Iterable[str]) -> None:
    """Wait until the brokers answer and every partition of these topics has a leader; its end is the client's."""
    while True:
        try:
            async with asyncio.timeout(RECONNECT_TIMEOUT):
                cluster = await client.client.fetch_all_metadata()
        except (KafkaError, OSError, TimeoutError) as error:
            logger.info("Kafka answers no metadata", error=repr(error))
        else:
            present, led = cluster.partitions_for_topic, cluster.available_partitions_for_topic
            if all(present(topic) == led(topic) for topic in topics):
                return
        await asyncio.sleep(RECONNECT_INTERVAL)


_produced_to = cache(metrics.PRODUCED.labels)


def _now_ms() -> int:
    """By Python's clock, as the times in events; aiokafka asks the operating system."""
    return int(time.time() * 1000)


class Batch:
    """A batch of records for one partition."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def append(self, key: bytes, value: bytes, headers: Headers) -> bool:
        """Add a record; False: the batch is full. The first record fits whatever its size."""
        taken = self.builder.append(timestamp=_now_ms(), key=key, value=value, headers=list(headers))
        return taken is not None

    @property
    def size(self) -> int:
        """Size in bytes."""
        return int(self.builder.size())

    @property
    def count(self) -> int:
        return int(self.builder.record_count())
