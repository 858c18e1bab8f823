"""Settings of a system of its own for each test, on the servers that all tests share."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from infra.cassandra.schema import migrate
from infra.kafka import create_topics
from infra.settings import PREFIX, Settings
from streams.topics import Topics


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
    name = f"test_{uuid4().hex[:12]}"
    asyncio.run(migrate(Settings(cassandra_hosts=cassandra_address, cassandra_keyspace=name)))
    return name


@pytest.fixture
def kafka_settings(kafka_address: str, tmp_path: Path) -> Settings:
    """A system with topics of its own, and no Cassandra."""
    settings = Settings(
        kafka_brokers=kafka_address, topic_prefix=f"test-{uuid4().hex[:12]}", partitions=2, data_dir=tmp_path
    )
    asyncio.run(create_topics(settings, Topics(settings.topic_prefix).configs()))
    return settings


@pytest.fixture
def cassandra_settings(cassandra_address: str, keyspace: str, tmp_path: Path) -> Settings:
    """A system with tables, and no Kafka."""
    return Settings(cassandra_hosts=cassandra_address, cassandra_keyspace=keyspace, data_dir=tmp_path)


@pytest.fixture
def settings(kafka_settings: Settings, cassandra_settings: Settings) -> Settings:
    """A system with topics and tables."""
    return kafka_settings.model_copy(
        update={
            "cassandra_hosts": cassandra_settings.cassandra_hosts,
            "cassandra_keyspace": cassandra_settings.cassandra_keyspace,
        }
    )


@pytest.fixture
def request_id() -> str:
    """A request that no other test knows."""
    return str(uuid4())
