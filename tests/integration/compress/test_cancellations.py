"""Following cancellations on the requests topic."""

from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from infra.settings import Settings
from streams.compress.cancellations import following_cancellations
from streams.events.requests import RequestCancelled
from streams.log import follower, reader
from streams.log.producer import EventLog
from tests.support.examples import requested
from tests.support.waiting import eventually


class InterruptedConsumer(AIOKafkaConsumer):  # type: ignore[misc]  # aiokafka has no types
    """A real consumer whose first polls fail as they do when a connection breaks in aiokafka's own code."""

    errors: list[Exception]

    async def getmany(self, *places: Any, **options: Any) -> Any:
        if self.errors:
            raise self.errors.pop()
        return await super().getmany(*places, **options)


async def test_reader_survives_broken_connections(
    kafka_settings: Settings, request_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(reader, "AIOKafkaConsumer", InterruptedConsumer)
    InterruptedConsumer.errors = [ConnectionResetError("reset"), TimeoutError(), OSError(113, "No route to host")]
    log = EventLog(kafka_settings)
    await log.start()
    try:
        async with following_cancellations(kafka_settings) as cancelled:
            await log.append(RequestCancelled(request_id=request_id, run=0))

            async def is_covered() -> bool:
                return cancelled.covers(requested(request_id))

            await eventually(is_covered)
    finally:
        await log.stop()
    assert InterruptedConsumer.errors == []


class SeekingConsumer(AIOKafkaConsumer):  # type: ignore[misc]  # aiokafka has no types
    """A real consumer that begins past the end of its partitions, as if they had been truncated since."""

    def seek(self, partition: TopicPartition, offset: int) -> None:
        super().seek(partition, offset + 1_000_000)


async def test_reader_rereads_truncated_topic(
    kafka_settings: Settings, request_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "AIOKafkaConsumer", SeekingConsumer)
    log = EventLog(kafka_settings)
    await log.start()
    try:
        await log.append(RequestCancelled(request_id=request_id, run=0))
    finally:
        await log.stop()
    async with following_cancellations(kafka_settings) as cancelled:

        async def is_covered() -> bool:
            return cancelled.covers(requested(request_id))

        await eventually(is_covered)
