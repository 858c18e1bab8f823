"""Catch-up of a new owner of partitions with the uncommitted events about their webhooks."""

import asyncio
from collections.abc import Awaitable, Callable

from aiokafka import TopicPartition

from infra.settings import Settings
from streams.events.base import Event
from streams.events.registry import decode_or_none
from streams.log.reader import LogReader
from streams.log.topics import Topics

WRITES_IN_FLIGHT = 64


async def catch_up(settings: Settings, record: Callable[[Event], Awaitable[object]], shards: set[int]) -> None:
    """Apply the attempts and manual redeliveries of some shards that the consumer group has not committed yet.

    The agent applies them, too, a moment later. Until then an attempt of the previous owner could be made again.
    """
    topics = Topics(settings.topic_prefix)
    partitions = [TopicPartition(topics.webhooks, shard) for shard in sorted(shards)]
    slots = asyncio.Semaphore(WRITES_IN_FLIGHT)

    async def write(event: Event) -> None:
        async with slots:
            await record(event)

    async with LogReader.open(settings) as reader:
        committed = await reader.committed(topics.group("projections"), topics.webhooks)
        async for records in reader.read({partition: committed.get(partition) for partition in partitions}):
            async with asyncio.TaskGroup() as writes:
                for one in records:
                    if (event := decode_or_none(one.value)) is not None:
                        writes.create_task(write(event))
