"""Admin client: partitions, and the committed offsets of consumer groups."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager

from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from infra.kafka.client import REQUEST_TIMEOUT_MS, connection_options, start_client, stop_client, unreachable
from infra.observability.logs import silenced
from infra.settings import Settings

METADATA_POLL = 0.2  # poll interval (s) while the cluster's metadata lacks a new topic or coordinator


@asynccontextmanager
async def admin_client(settings: Settings, timeout: float = 15) -> AsyncIterator[AIOKafkaAdminClient]:
    """A connected admin client; KafkaUnavailableError after ``timeout`` seconds."""
    admin = AIOKafkaAdminClient(**connection_options(settings), request_timeout_ms=REQUEST_TIMEOUT_MS)
    try:
        try:
            with silenced("aiokafka") as messages:
                await start_client(admin, timeout)
        except (KafkaError, OSError, TimeoutError) as error:
            raise unreachable(settings, error, messages) from None
        yield admin
    finally:
        await stop_client(admin.close)


async def partitions_of(admin: AIOKafkaAdminClient, topic: str) -> list[TopicPartition]:
    """All partitions of a topic, in order. Waits for the metadata of a new topic; the caller sets the deadline."""
    while True:
        (description,) = await admin.describe_topics([topic])
        if description["partitions"]:
            return sorted(TopicPartition(topic, entry["partition"]) for entry in description["partitions"])
        # Metadata propagates a moment after a topic's creation; without partitions a reader would read nothing.
        await asyncio.sleep(METADATA_POLL)


async def committed_offsets(
    admin: AIOKafkaAdminClient, group: str, partitions: Iterable[TopicPartition]
) -> dict[TopicPartition, int]:
    """Committed offsets of a consumer group; -1 for none. Waits for the coordinator; the caller sets the deadline."""
    requested = list(partitions)
    while True:
        try:
            committed = await admin.list_consumer_group_offsets(group, partitions=requested)
        except KafkaError as error:
            # A new cluster elects a coordinator at the first request for one.
            if not error.retriable:
                raise
        else:
            # A restarted coordinator omits offsets that it has not loaded yet; aiokafka 0.14 hides the error.
            if committed.keys() >= set(requested):
                return {partition: committed[partition].offset for partition in requested}
        await asyncio.sleep(METADATA_POLL)


async def commit_offsets(settings: Settings, group: str, offsets: Mapping[TopicPartition, int]) -> None:
    """Commit offsets of a group without members. Raises KafkaUnavailableError."""
    consumer = AIOKafkaConsumer(**connection_options(settings), group_id=group, enable_auto_commit=False)
    consumer.assign(list(offsets))
    try:
        async with asyncio.timeout(REQUEST_TIMEOUT_MS / 1000):
            await start_client(consumer, REQUEST_TIMEOUT_MS / 1000)
            await consumer.commit(dict(offsets))
    except (KafkaError, OSError, TimeoutError) as error:
        raise unreachable(settings, error) from None
    finally:
        await stop_client(consumer.stop)
