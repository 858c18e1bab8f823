"""The event log's producer: appends events and dead letters to their topics, one by one or in batches."""

import asyncio
import os
import socket
from collections import deque
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable

from aiokafka.structs import RecordMetadata

from infra.kafka.producer import DELIVERY_TIMEOUT, Batch, Headers, Producer
from infra.observability import metrics
from infra.settings import Settings
from streams.events.base import HEADERS, Event, Offsets, widen
from streams.events.images import ImageRequested
from streams.events.trace_context import HEADER as TRACEPARENT
from streams.log.topics import Topics

WORKER = "worker"
"""The header that says which process wrote a record: role@host-pid."""
MAX_DEAD_LETTER_BYTES = 1_000_000
"""Largest key and value of a dead letter: with its headers it must fit into the brokers' default of 1,048,588 bytes."""
MAX_BATCHES_BYTES = 1024 * 1024
MIN_BATCH_BYTES = 16 * 1024
APPENDS_IN_FLIGHT = 1000
"""Maximum number of unacknowledged events of one `append_all` or `append_each`."""


class EventBatches:
    """Writes many image requests, those of one partition together, at a fraction of the cost of each by itself.

    ``add`` runs in any one thread at a time, ``send`` in the event loop's, also while ``add`` runs. At most one
    MiB of events is kept back (more only where there are more than 64 partitions), and as much again is on its way.
    """

    def __init__(self, producer: Producer, headers: Headers, topic: str, partitions: int) -> None:
        self._producer = producer
        self._headers = headers
        self._topic = topic
        self._partitions = partitions
        self._batch_bytes = max(MIN_BATCH_BYTES, MAX_BATCHES_BYTES // partitions)
        self._open: dict[int, Batch] = {}
        self._full: deque[tuple[int, Batch]] = deque()
        self._sent: deque[tuple[int, asyncio.Future[RecordMetadata]]] = deque()
        self.offsets: Offsets = {}

    def add(self, event: ImageRequested) -> None:
        """Put an event into the batch of its partition."""
        key, (value, headers) = event.key, record_of(event, self._headers)
        partition = event.partition_among(self._partitions)
        batch = self._open.get(partition)
        if batch is not None and (batch.size > self._batch_bytes or not batch.append(key, value, headers)):
            self._full.append((partition, self._open.pop(partition)))
            batch = None
        if batch is None:
            batch = self._open[partition] = self._producer.new_batch()
            batch.append(key, value, headers)

    async def send(self) -> None:
        """Send the full batches; waits while the producer's buffer is full. Raises KafkaError if a batch is refused."""
        while self._full:
            partition, batch = self._full.popleft()
            sent = await self._producer.send_batch(batch, self._topic, partition)
            self._sent.append((batch.count, sent))
            while self._sent and (self._sent[0][1].done() or len(self._sent) > self._partitions):
                await self._note()

    async def finish(self) -> Offsets:
        """Send the rest and wait until all are acknowledged: partition → first and last offset of these events."""
        self._full.extend(self._open.items())
        self._open.clear()
        await self.send()
        while self._sent:
            await self._note()
        return self.offsets

    async def _note(self) -> None:
        count, sent = self._sent.popleft()
        written = await sent
        widen(self.offsets, written.partition, written.offset, written.offset + count - 1)


class EventLog:
    """Appends events to their topics."""

    def __init__(
        self,
        settings: Settings,
        *,
        role: str = "shrinkstream",
        linger_ms: int = 2,
        delivery_timeout: float = DELIVERY_TIMEOUT,
        before_write: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """``role``: of this process, in a header of each event; the others as in `Producer`.

        ``before_write``: awaited right before each event is handed to the producer; may refuse it by raising.
        """
        self.topics = Topics(settings.topic_prefix)
        for topic in self.topics.configs():
            metrics.PRODUCE_ERRORS.labels(topic)  # starts at 0, so that `increase()` sees the first one
        self.headers = (*HEADERS, (WORKER, f"{role}@{socket.gethostname()}-{os.getpid()}".encode()))
        self._producer = Producer(settings, linger_ms, delivery_timeout)
        self._before_write = before_write

    @property
    def problem(self) -> str | None:
        """Readiness check: why the last write failed; None if it didn't, or Kafka takes writes again."""
        return self._producer.problem

    async def start(self) -> None:
        await self._producer.start()

    async def stop(self) -> None:
        await self._producer.stop()

    async def append(self, event: Event, *, partition: int | None = None) -> RecordMetadata:
        """Write one event and wait until the brokers have it; ``partition`` None: its own."""
        return await (await self.enqueue(event, partition=partition))

    async def append_all(self, events: Iterable[Event]) -> None:
        """Write events in their order, and wait until the brokers have them all: they share requests."""
        pending: deque[asyncio.Future[RecordMetadata]] = deque()
        for event in events:
            pending.append(await self.enqueue(event))
            if len(pending) > APPENDS_IN_FLIGHT:
                await pending.popleft()
        while pending:
            await pending.popleft()

    async def append_each(
        self, events: AsyncIterable[Event], on_written: Callable[[RecordMetadata], None] = lambda _: None
    ) -> None:
        """As `append_all`; ``on_written`` is called for each, in order."""
        pending: deque[asyncio.Future[RecordMetadata]] = deque()
        async for event in events:
            pending.append(await self.enqueue(event))
            if len(pending) > APPENDS_IN_FLIGHT:
                on_written(await pending.popleft())
        while pending:
            on_written(await pending.popleft())

    async def enqueue(self, event: Event, *, partition: int | None = None) -> "asyncio.Future[RecordMetadata]":
        """Write one event among many: the future is done when the brokers have it."""
        topic = getattr(self.topics, event.topic)
        if partition is None:
            partition = event.partition_among(await self._producer.partition_count(topic))
        value, headers = record_of(event, self.headers)
        if self._before_write is not None:
            await self._before_write()
        return await self._producer.send(topic, event.key, value, headers, partition=partition)

    async def start_batches(self) -> EventBatches:
        """For the many image requests of an upload; see EventBatches."""
        topic = self.topics.image_requests
        return EventBatches(self._producer, self.headers, topic, await self._producer.partition_count(topic))

    async def dead_letter(
        self, value: bytes | None, key: bytes | None, *, topic: str, partition: int, offset: int, error: str
    ) -> None:
        """Copy a record that can't be decoded to the dead-letter topic, with its position and the error.

        One of maximum size would not fit in with its headers: its value is truncated, and its key left out.
        """
        size = len(key or b"") + len(value or b"")
        is_truncated = size > MAX_DEAD_LETTER_BYTES
        if is_truncated:
            key, value = None, (value or b"")[:MAX_DEAD_LETTER_BYTES]
        headers = (
            ("dead-letter-topic", topic.encode()),
            ("dead-letter-partition", str(partition).encode()),
            ("dead-letter-offset", str(offset).encode()),
            ("dead-letter-error", error.encode()),
            *((("dead-letter-truncated-from", str(size).encode()),) if is_truncated else ()),
        )
        await (await self._producer.send(self.topics.dead_letters, key, value or b"", headers))


def record_of(event: Event, common: Headers) -> tuple[bytes, list[tuple[str, bytes]]]:
    """The value of an event's record, and its headers: the ``common`` ones and its trace context."""
    value, context = event.encode_with_context()
    return value, [*common, (TRACEPARENT, context)]
