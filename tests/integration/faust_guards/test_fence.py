"""Z3: the brokers refuse what an earlier owner of a changelog partition sends."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
from aiokafka.errors import ProducerFenced
from aiokafka.structs import TopicPartition

from infra.faust.fence import FENCE_KEY, FencedProducer
from infra.faust.lease import Lease
from tests.integration.faust_guards.cluster import Cluster

pytestmark = pytest.mark.slow


class HeldLease(Lease):
    def __init__(self) -> None:
        super().__init__(10, 60, 60)

    @property
    def is_held(self) -> bool:
        return True


@asynccontextmanager
async def owner(address: str) -> AsyncIterator[FencedProducer]:
    producer = FencedProducer(lease=HeldLease(), bootstrap_servers=address, acks="all", enable_idempotence=True)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def write(producer: FencedProducer, tp: TopicPartition, value: bytes) -> None:
    await producer.send_and_wait(tp.topic, value, b"key", partition=tp.partition)


@pytest.fixture
def changelog(kafka_address: str) -> str:
    name = f"fence-{uuid4().hex[:8]}"
    Cluster(kafka_address).create_topic(name, 2)
    return name


def values(address: str, topic: str, partition: int = 0) -> list[bytes | None]:
    records = Cluster(address).read(topic)
    return [record.value for record in records if record.partition == partition and record.key != FENCE_KEY]


async def test_brokers_refuse_earlier_owner(kafka_address: str, changelog: str) -> None:
    lost, kept = TopicPartition(changelog, 0), TopicPartition(changelog, 1)
    async with owner(kafka_address) as first, owner(kafka_address) as second:
        await first.claim([lost, kept])
        await write(first, lost, b"first")
        await second.claim([lost])
        with pytest.raises(ProducerFenced):
            await write(first, lost, b"zombie")
        await write(second, lost, b"second")
        await write(first, kept, b"still its own")


async def test_refused_write_is_not_read(kafka_address: str, changelog: str) -> None:
    lost = TopicPartition(changelog, 0)
    async with owner(kafka_address) as first, owner(kafka_address) as second:
        await first.claim([lost])
        for number in range(3):
            await write(first, lost, b"first %d" % number)
        await second.claim([lost])
        late = await first.send(changelog, b"zombie", b"key", partition=0)
        await write(second, lost, b"second")
        with pytest.raises(ProducerFenced):
            await late


async def test_owner_claims_again_and_renews(kafka_address: str, changelog: str) -> None:
    tp = TopicPartition(changelog, 0)
    async with owner(kafka_address) as first, owner(kafka_address) as second:
        for number in range(3):
            await first.claim([tp])
            await write(first, tp, b"%d" % number)
        await first.renew([tp])
        await write(first, tp, b"after the renewal")
        await second.claim([tp])
        with pytest.raises(ProducerFenced):
            await write(first, tp, b"zombie")
