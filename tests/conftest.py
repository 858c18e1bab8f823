"""Fixtures of every test: one real Kafka and one real Cassandra per run.

``TEST_KAFKA`` and ``TEST_CASSANDRA`` (``host:port``) name running servers to use instead.
"""

import asyncio
import inspect
import os
import signal
from collections.abc import Iterator

import pytest

from infra.embedded import EmbeddedServer, EmbeddedServers
from infra.embedded.cassandra import EmbeddedCassandra
from infra.embedded.kafka import EmbeddedKafka
from tests.s3 import S3Server

# What a script begins in the background ignores Ctrl-C, and so would every program that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an ``async def`` test; 60 s, or those of its ``time_limit`` mark, bound a wait that would not end."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    mark = pyfuncitem.get_closest_marker("time_limit")

    async def bounded() -> None:
        async with asyncio.timeout(mark.args[0] if mark else 60):
            await pyfuncitem.obj(**arguments)

    asyncio.run(bounded())
    return True


@pytest.fixture(scope="session")
def server_addresses(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """Address by fixture name of every server that the selected tests ask for, all started side by side."""
    wanted = {name for item in request.session.items for name in getattr(item, "fixturenames", ())}
    data_dir = tmp_path_factory.mktemp("servers")
    addresses: dict[str, str] = {}
    servers: dict[str, EmbeddedServer] = {}
    for fixture, variable, server in (
        ("kafka_address", "TEST_KAFKA", EmbeddedKafka(data_dir)),
        ("cassandra_address", "TEST_CASSANDRA", EmbeddedCassandra(data_dir)),
    ):
        if os.environ.get(variable):
            addresses[fixture] = os.environ[variable]
        elif fixture in wanted:
            servers[fixture] = server
    # In the main thread, which outlives the tests: a server ends with the thread that started it.
    with asyncio.Runner() as runner:
        embedded = EmbeddedServers(*servers.values())
        runner.run(embedded.start())
        try:
            yield addresses | {fixture: server.address for fixture, server in servers.items()}
        finally:
            runner.run(embedded.stop())


@pytest.fixture(scope="session")
def kafka_address(server_addresses: dict[str, str]) -> str:
    """``host:port`` of a Kafka whose topics are shared by all tests: use names of your own."""
    return server_addresses["kafka_address"]


@pytest.fixture(scope="session")
def cassandra_address(server_addresses: dict[str, str]) -> str:
    """``host:port`` of a Cassandra whose keyspaces are shared by all tests: use names of your own."""
    return server_addresses["cassandra_address"]


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """An S3 server whose buckets are shared by all tests: use names of your own."""
    with S3Server() as server:
        yield server
