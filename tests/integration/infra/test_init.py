"""`init`: creates what is missing, as often and by as many at once as one likes."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from infra.cassandra.schema import SchemaError, migrate, migrations, require_schema, statements
from infra.cassandra.session import CassandraUnavailableError, Session
from infra.cli.init import initialise
from infra.kafka.client import KafkaUnavailableError
from infra.kafka.topics import (
    MIN_INSYNC_REPLICAS,
    InsyncReplicasError,
    MissingTopicsError,
    PartitionsError,
    create_topics,
    require_topics,
)
from infra.settings import Settings, environment_of
from streams.log.topics import Topics
from tests.support.console_script import shrinkstream
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

TABLES = {
    "requests",
    "requests_by_owner",
    "days_by_owner",
    "images_by_request",
    "images_by_product_month",
    "months_by_owner",
    "sums_by_owner",
    "idempotency_keys",
    "schema_migrations",
}


@pytest.fixture
def fresh(kafka_address: str, cassandra_address: str, tmp_path: Path) -> Settings:
    """A system of which nothing is there yet."""
    name = uuid4().hex[:12]
    return Settings(
        kafka_brokers=kafka_address,
        topic_prefix=f"init-{name}",
        partitions=3,
        cassandra_hosts=cassandra_address,
        cassandra_keyspace=f"init_{name}",
        data_dir=tmp_path,
    )


@asynccontextmanager
async def connected(settings: Settings, keyspace: str | None = None) -> AsyncIterator[Session]:
    session = await Session.connect(settings, keyspace=keyspace)
    try:
        yield session
    finally:
        await session.close()


async def tables(settings: Settings) -> set[str]:
    async with connected(settings, "") as session:
        rows = await session.execute(
            "SELECT table_name FROM system_schema.tables WHERE keyspace_name = ?", (settings.cassandra_keyspace,)
        )
    return {row.table_name for row in rows}


@asynccontextmanager
async def admin(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_brokers)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


async def test_concurrent_migrations_make_one_schema(fresh: Settings) -> None:
    created = await asyncio.gather(*(initialise(fresh) for _ in range(4)))
    everything = {*Topics(fresh.topic_prefix).configs(), *(name for _, name, _ in migrations())}
    assert set().union(*map(set, created)) == everything
    assert await tables(fresh) >= TABLES
    assert await initialise(fresh) == []


async def test_interrupted_migration_is_completed(fresh: Settings) -> None:
    await migrate(fresh)
    async with connected(fresh) as session:
        # As after a kill between the first statement and the second.
        await session.execute_script("DROP TABLE images_by_request")
        await session.execute_script("DROP TABLE idempotency_keys")
        await session.execute("DELETE FROM schema_migrations WHERE number = ?", (6,))
        await session.execute("INSERT INTO requests (request_id, total) VALUES (?, ?)", ("kept", 7))
    assert await migrate(fresh) == [migrations()[0][1]]
    assert await tables(fresh) >= TABLES
    async with connected(fresh) as session:
        (row,) = await session.execute("SELECT total FROM requests WHERE request_id = ?", ("kept",))
        assert row.total == 7


async def test_schema_of_other_version_is_error_naming_missing_migrations(fresh: Settings) -> None:
    await migrate(fresh)
    async with connected(fresh) as session:
        await require_schema(session, fresh.cassandra_keyspace)
        await session.execute("DELETE FROM schema_migrations WHERE number = ?", (7,))
        with pytest.raises(SchemaError, match=f"lacks {migrations()[1][1]}: run `shrinkstream init`"):
            await require_schema(session, fresh.cassandra_keyspace)
        await session.execute_script("DROP TABLE schema_migrations")
        with pytest.raises(SchemaError, match="lacks 0006_"):
            await require_schema(session, fresh.cassandra_keyspace)


async def test_missing_topic_is_created_and_others_are_kept(fresh: Settings) -> None:
    topics = Topics(fresh.topic_prefix)

    configs = topics.configs()
    first = {name: config for name, config in configs.items() if name != topics.webhooks}
    assert set(await create_topics(fresh, first)) == set(first)
    await require_topics(fresh, first)  # listed at once, for a process that starts next
    with pytest.raises(MissingTopicsError, match=f": {topics.webhooks}; `shrinkstream init` creates them"):
        await require_topics(fresh, configs)
    more = fresh.model_copy(update={"partitions": 5})
    assert await create_topics(more, configs) == [topics.webhooks]
    await require_topics(fresh, configs)
    async with admin(fresh) as client:
        found = await client.describe_topics([topics.requests, topics.webhooks])
        assert {each["topic"]: len(each["partitions"]) for each in found} == {
            topics.requests: 3,
            topics.webhooks: 5,
        }


async def test_every_migration_statement_is_idempotent(cassandra_settings: Settings) -> None:
    async with connected(cassandra_settings) as session:
        for _, _, text in migrations():
            for statement in statements(text):
                await session.execute_script(statement)


async def test_unreachable_servers_are_clear_errors(fresh: Settings) -> None:
    async with asyncio.timeout(120):
        with pytest.raises(KafkaUnavailableError, match=r"127\.0\.0\.1:1"):
            await create_topics(fresh.model_copy(update={"kafka_brokers": "127.0.0.1:1"}), {})
        with pytest.raises(CassandraUnavailableError, match=r"127\.0\.0\.1:1"):
            await migrate(fresh.model_copy(update={"cassandra_hosts": "127.0.0.1:1"}))


def environment(settings: Settings) -> dict[str, str]:
    return {**os.environ, **environment_of(settings)}


async def test_init_creates_all_once_and_changes_nothing_later(fresh: Settings) -> None:
    topics = Topics(fresh.topic_prefix).configs()
    first = shrinkstream("init", environment=environment(fresh))
    assert first.returncode == 0, first.stderr
    names = {*topics, *(name for _, name, _ in migrations())}
    assert set(first.stdout.splitlines()) == {f"created {name}" for name in names}
    second = shrinkstream("init", environment=environment(fresh))
    assert (second.returncode, second.stdout) == (0, "")

    assert await tables(fresh) >= TABLES
    async with admin(fresh) as client:
        for description in await client.describe_topics(list(topics)):
            assert len(description["partitions"]) == 3, description["topic"]
        for name, config in topics.items():
            asked = ConfigResource(ConfigResourceType.TOPIC, name, dict.fromkeys(config))
            (answer,) = await client.describe_configs([asked])
            ((*_, entries),) = answer.resources
            assert {entry[0]: entry[1] for entry in entries} == config, name


def test_init_without_servers_ends_with_one_clear_line(fresh: Settings) -> None:
    failed = shrinkstream("init", environment=environment(fresh.model_copy(update={"kafka_brokers": "127.0.0.1:1"})))
    assert failed.returncode == 1
    (line,) = failed.stderr.splitlines()
    assert "127.0.0.1:1" in line


async def partitions(settings: Settings) -> dict[str, int]:
    async with admin(settings) as client:
        found = await client.describe_topics(list(Topics(settings.topic_prefix).configs()))
    return {each["topic"]: len(each["partitions"]) for each in found}


async def test_only_the_topic_of_queued_images_grows(fresh: Settings) -> None:
    topics = Topics(fresh.topic_prefix)

    async def grown() -> bool:
        return (await partitions(fresh))[topics.image_requests] == 5

    await initialise(fresh)
    assert await initialise(fresh, 5) == [f"5 partitions of {topics.image_requests}"]
    await eventually(grown)
    assert set((await partitions(fresh)).values()) == {3, 5}
    assert await initialise(fresh, 5) == []
    with pytest.raises(PartitionsError, match=r"image-requests has 5 partitions, and Kafka can't remove partitions$"):
        await initialise(fresh, 4)


async def test_process_with_other_partition_count_ends_with_error(
    fresh: Settings,
) -> None:
    await initialise(fresh)
    other = fresh.model_copy(update={"partitions": 6})
    for role in (("worker", "progress"), ("worker", "projections"), ("worker", "compress"), ("api",)):
        ended = shrinkstream(*role, environment=environment(other))
        assert ended.returncode == (69 if role[0] == "worker" else 1), role
        assert "SHRINKSTREAM_PARTITIONS is 6, but topics have other" in ended.stderr
        assert "Traceback" not in ended.stderr


async def test_topics_require_insync_replicas(fresh: Settings) -> None:
    topic = Topics(fresh.topic_prefix).requests
    await create_topics(fresh, {topic: {}})
    async with admin(fresh) as client:
        (answer,) = await client.describe_configs(
            [ConfigResource(ConfigResourceType.TOPIC, topic, {MIN_INSYNC_REPLICAS: ""})]
        )
    ((*_, entries),) = answer.resources
    assert entries[0][:2] == (MIN_INSYNC_REPLICAS, "1")


async def test_init_rejects_topic_that_takes_no_write(fresh: Settings) -> None:
    topic = Topics(fresh.topic_prefix).requests
    await create_topics(fresh, {topic: {MIN_INSYNC_REPLICAS: "2"}})
    with pytest.raises(InsyncReplicasError, match=f"topic {topic}: min.insync.replicas is 2 for 1 replicas"):
        await initialise(fresh)
