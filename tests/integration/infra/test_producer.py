"""The producer after a failed write: replaced, ready again, and without late deliveries."""

import asyncio
import gc
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from infra.cancellation import cancel_and_wait
from infra.devserver.kafka import EmbeddedKafka
from infra.kafka.producer import Producer
from infra.kafka.topics import create_topics
from infra.settings import Settings
from streams.log.topics import Topics
from tests.support.outage import paused
from tests.support.topic_reader import records_in
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

DELIVERY_TIMEOUT = 1.5


@asynccontextmanager
async def producing(settings: Settings) -> AsyncIterator[Producer]:
    producer = Producer(settings, delivery_timeout=DELIVERY_TIMEOUT)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def write(producer: Producer, topic: str, value: bytes) -> None:
    await (await producer.send(topic, b"key", value, partition=0))


async def write_until_accepted(producer: Producer, topic: str, value: bytes) -> None:
    async def is_written() -> bool:
        try:
            await write(producer, topic, value)
        except KafkaError:
            return False
        return True

    await eventually(is_written)


async def test_partition_without_leader_is_written_again(
    kafka_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that fails for good leaves a gap in the sequence numbers of its partition."""
    monkeypatch.setattr(
        "infra.kafka.producer.REQUEST_TIMEOUT_MS", 3000
    )  # after which aiokafka gives up a leaderless partition
    topic = Topics(kafka_settings.topic_prefix).dead_letters
    producer = Producer(kafka_settings)
    await producer.start()
    try:
        await write(producer, topic, b"one")
        assert producer._client is not None
        cluster = producer._client.client.cluster
        leaders = cluster.leader_for_partition
        lost = TopicPartition(topic, 0)
        monkeypatch.setattr(cluster, "leader_for_partition", lambda tp: -1 if tp == lost else leaders(tp))
        with pytest.raises(KafkaError):
            await write(producer, topic, b"two")
        monkeypatch.setattr(cluster, "leader_for_partition", leaders)
        assert producer.problem is not None
        await write(producer, topic, b"three")
        await write(producer, topic, b"four")
        assert producer.problem is None
    finally:
        await producer.stop()
    assert [record.value for record in await records_in(kafka_settings, topic)] == [b"one", b"three", b"four"]


async def test_idle_producer_is_ready_again(kafka_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that gets no work, because it is not ready, has no write that could make it ready."""
    topic = Topics(kafka_settings.topic_prefix).dead_letters
    async with producing(kafka_settings) as producer:
        await write(producer, topic, b"one")
        assert producer._client is not None
        producer._replace(producer._client, KafkaError("a write failed"))
        assert producer.problem is not None

        async def is_ready() -> bool:
            return producer.problem is None

        await eventually(is_ready)


async def test_paused_broker_fails_writes_in_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with EmbeddedKafka(tmp_path) as kafka:
        settings = Settings(kafka_brokers=kafka.address, topic_prefix=f"test-{uuid4().hex[:8]}", partitions=1)
        topic = Topics(settings.topic_prefix).dead_letters
        await create_topics(settings, {topic: {}})
        async with producing(settings) as producer:
            await write(producer, topic, b"before")
            with paused(kafka):
                async with asyncio.timeout(120):
                    with pytest.raises(KafkaError, match="not acknowledged"):
                        await write(producer, topic, b"in a socket")
                    assert producer.problem is not None
                    # The client can't be replaced as long as the broker is away.
                    with pytest.raises(KafkaError):
                        await write(producer, topic, b"never sent")
            await write_until_accepted(producer, topic, b"after")
            assert producer.problem is None
        values = [record.value for record in await records_in(settings, topic)]
        # What was in a socket may still be written, once; what was not must not be.
        assert [value for value in values if value != b"in a socket"] == [b"before", b"after"]
        assert values.count(b"in a socket") <= 1
        assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8, 13])
async def test_cancelled_start_leaves_no_connection(kafka_settings: Settings, steps: int) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        producer = Producer(kafka_settings)
        starting = asyncio.create_task(producer.start())
        for _ in range(steps):
            await asyncio.sleep(0.001)
        await cancel_and_wait(starting)
        await producer.stop()  # of one that was started before it was cancelled
        del starting, producer
        gc.collect()
    assert [str(warning.message) for warning in caught] == []
