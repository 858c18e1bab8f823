"""The changelog of the progress table, written without a progress worker."""

from aiokafka import AIOKafkaProducer

from infra.settings import Settings
from streams.events.base import Event
from streams.log.topics import Topics
from streams.progress.store import fold


class Changelog:
    """Writes the changelog as the progress app does: a record for each change, in the partition of its request."""

    def __init__(self, settings: Settings) -> None:
        self.topic = Topics(settings.topic_prefix).progress_changelog
        self._producer = AIOKafkaProducer(bootstrap_servers=settings.kafka_brokers, acks="all")
        self._table: dict[bytes, bytes] = {}

    async def __aenter__(self) -> "Changelog":
        await self._producer.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._producer.stop()

    async def fold(self, *events: Event) -> None:
        for event in events:
            for key, value in fold(event, self._table.get).changes.items():
                await self.put(key, value)

    async def put(self, key: bytes, value: bytes | None) -> None:
        if value is None:
            self._table.pop(key, None)
        else:
            self._table[key] = value
        partition = sum(key.partition(b"/")[0]) % 2
        await self._producer.send_and_wait(self.topic, value, key, partition=partition)
