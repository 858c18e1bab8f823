"""What a test does with the real broker, as plain blocking calls."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.structs import ConsumerRecord

TIMEOUT = 120

T = TypeVar("T")


class Cluster:
    """A broker at ``address``."""

    def __init__(self, address: str) -> None:
        self.address = address

    def create_topic(self, name: str, partitions: int, config: Mapping[str, str] | None = None) -> None:
        async def create() -> None:
            async with self._admin() as admin:
                topic = NewTopic(name, partitions, 1, topic_configs=dict(config or {}))
                answer = await admin.create_topics([topic])
                assert not any(code for _, code, *_ in answer.topic_errors), answer
                while name not in await admin.list_topics():  # noqa: ASYNC110 - the broker does not tell
                    await asyncio.sleep(0.05)

        _run(create())

    def produce(self, topic: str, values: Sequence[bytes | None], partition: int | None = None) -> None:
        """Keys spread the values over the partitions, unless one is named."""

        async def produce() -> None:
            async with AIOKafkaProducer(bootstrap_servers=self.address, acks="all", linger_ms=5) as producer:
                await asyncio.gather(
                    *[
                        await producer.send(topic, value, key=b"%d" % number, partition=partition)
                        for number, value in enumerate(values)
                    ]
                )

        _run(produce())

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """The committed offset of each partition that has one."""

        async def committed() -> dict[int, int]:
            async with self._admin() as admin:
                offsets = await admin.list_consumer_group_offsets(group)
            return {tp.partition: found.offset for tp, found in offsets.items() if tp.topic == topic}

        return _run(committed())

    def read(self, topic: str) -> list[ConsumerRecord[bytes, bytes]]:
        """Every record of the topic."""

        async def read() -> list[ConsumerRecord[bytes, bytes]]:
            async with AIOKafkaConsumer(
                topic, bootstrap_servers=self.address, auto_offset_reset="earliest"
            ) as consumer:
                ends = await consumer.end_offsets(consumer.assignment())
                records: list[ConsumerRecord[bytes, bytes]] = []
                while [tp for tp, end in ends.items() if await consumer.position(tp) < end]:
                    for batch in (await consumer.getmany(timeout_ms=500)).values():
                        records.extend(batch)
                return records

        return _run(read())

    @asynccontextmanager
    async def _admin(self) -> AsyncIterator[AIOKafkaAdminClient]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.address)
        await admin.start()
        try:
            yield admin
        finally:
            await admin.close()


def _run(work: Coroutine[Any, Any, T]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(TIMEOUT):
            return await work

    return asyncio.run(bounded())
