"""A progress view that is fed by a test, without Kafka."""

from aiokafka import ConsumerRecord, TopicPartition

from infra.settings import Settings
from streams.events.base import Event
from streams.progress.store import fold
from streams.progress.view import ProgressView


def record(topic: str, key: bytes, value: bytes | None) -> "ConsumerRecord[bytes, bytes]":
    return ConsumerRecord(topic, 0, 0, 0, 0, key, value, None, 0, 0, ())


class Feed:
    """Feeds a view: events as they come on the requests topic, and rows as the progress workers write them."""

    def __init__(self) -> None:
        self.view = ProgressView(Settings(kafka_brokers="127.0.0.1:1"))
        self._table: dict[bytes, bytes] = {}

    def event(self, event: Event) -> None:
        topic = self.view._topics.requests
        self.view._take(TopicPartition(topic, 0), [record(topic, event.key, event.encode())])

    def rows(self, *events: Event) -> None:
        topic = self.view._topics.progress_changelog
        for event in events:
            for key, value in fold(event, self._table.get).changes.items():
                if value is None:
                    self._table.pop(key, None)
                else:
                    self._table[key] = value
                self.view._take(TopicPartition(topic, 0), [record(topic, key, value)])
