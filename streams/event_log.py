"""Writing events: the one way in which every part of the system does it."""

import asyncio

from aiokafka.structs import RecordMetadata

from infra.kafka import Producer
from infra.settings import Settings
from streams.events import HEADERS, Event
from streams.topics import Topics


class EventLog:
    """Appends events to their topics."""

    def __init__(self, settings: Settings) -> None:
        self.topics = Topics(settings.topic_prefix)
        self._producer = Producer(settings)

    async def start(self) -> None:
        await self._producer.start()

    async def stop(self) -> None:
        await self._producer.stop()

    async def append(self, event: Event, *, partition: int | None = None) -> RecordMetadata:
        """Write one event and wait until the brokers have it; ``partition`` None: its own."""
        return await (await self.enqueue(event, partition=partition))

    async def enqueue(self, event: Event, *, partition: int | None = None) -> "asyncio.Future[RecordMetadata]":
        """Write one event among many: the future is done when the brokers have it."""
        topic = getattr(self.topics, event.topic)
        if partition is None:
            partition = event.partition_among(await self._producer.partition_count(topic))
        return await self._producer.send(topic, event.key, event.encode(), HEADERS, partition=partition)

    async def dead_letter(
        self, value: bytes | None, key: bytes | None, *, topic: str, partition: int, offset: int, error: str
    ) -> None:
        """Put a record that can't be read aside, with its place and what is wrong with it."""
        headers = (
            ("dead-letter-topic", topic.encode()),
            ("dead-letter-partition", str(partition).encode()),
            ("dead-letter-offset", str(offset).encode()),
            ("dead-letter-error", error.encode()),
        )
        await (await self._producer.send(self.topics.dead_letters, key, value or b"", headers))
