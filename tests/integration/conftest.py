"""Settings of a system of its own for each test, on the servers that all tests share."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from infra.cassandra.schema import migrate
from infra.kafka.topics import create_topics
from infra.settings import PREFIX, Settings
from streams.log.topics import Topics


@pytest.fixture(scope="session", autouse=True)
def _nothing_given() -> Iterator[None]:
    """No setting of this machine reaches a test."""
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.upper().startswith(PREFIX):
                patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def keyspace(cassandra_address: str) -> str:
    """A keyspace with all tables. All tests share it: use request ids of your own."""
    return new_keyspace(cassandra_address)


def new_keyspace(cassandra_address: str) -> str:
    """A keyspace with all tables, that no worker reads yet."""
    name = f"test_{uuid4().hex[:12]}"
    asyncio.run(migrate(Settings(cassandra_hosts=cassandra_address, cassandra_keyspace=name)))
    return name


def system_with_topics(kafka_address: str, data_dir: Path) -> Settings:
    settings = Settings(
        kafka_brokers=kafka_address, topic_prefix=f"test-{uuid4().hex[:12]}", partitions=2, data_dir=data_dir
    )
    asyncio.run(create_topics(settings, Topics(settings.topic_prefix).configs()))
    return settings


@pytest.fixture
def kafka_settings(kafka_address: str, tmp_path: Path) -> Settings:
    """A system with topics of its own, and no Cassandra."""
    return system_with_topics(kafka_address, tmp_path)


@pytest.fixture
def cassandra_settings(cassandra_address: str, keyspace: str, tmp_path: Path) -> Settings:
    """A system with tables, and no Kafka."""
    return Settings(cassandra_hosts=cassandra_address, cassandra_keyspace=keyspace, data_dir=tmp_path)


@pytest.fixture(scope="module")
def topic_prefix(kafka_address: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Topics that the tests of one file share, as creating them takes longer than many a test."""
    return system_with_topics(kafka_address, tmp_path_factory.mktemp("topics")).topic_prefix


@pytest.fixture
def settings(kafka_address: str, topic_prefix: str, cassandra_settings: Settings) -> Settings:
    """A system with tables and topics, which other tests share: use request ids of your own."""
    return cassandra_settings.model_copy(
        update={"kafka_brokers": kafka_address, "topic_prefix": topic_prefix, "partitions": 2}
    )


@pytest.fixture
def request_id() -> str:
    """A request that no other test knows."""
    return str(uuid4())
