"""Fixtures of every test: a real Kafka and a real Cassandra that all workers share.

``TEST_KAFKA`` and ``TEST_CASSANDRA`` (``host:port``) name running servers to use instead.
"""

import asyncio
import inspect
import os
import signal
from collections.abc import Iterator

import hypothesis
import pytest

from tests.support.s3 import S3Server
from tests.support.servers import KINDS, shared_servers

# What a script begins in the background ignores Ctrl-C, and so would every program that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["tests.support.run"]

# No deadline: a busy machine takes long over an example. A rule that needs more examples than most says so itself.
hypothesis.settings.register_profile("suite", deadline=None, max_examples=40)
hypothesis.settings.load_profile("suite")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an ``async def`` test; 600 s, or those of its ``time_limit`` mark, bound a wait that would not end."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    mark = pyfuncitem.get_closest_marker("time_limit")

    async def bounded() -> None:
        async with asyncio.timeout(mark.args[0] if mark else 600):
            await pyfuncitem.obj(**arguments)

    asyncio.run(bounded())
    return True


@pytest.fixture(scope="session")
def server_addresses(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Address by name of every server that the selected tests ask for, all started side by side."""
    wanted = {name for item in request.session.items for name in getattr(item, "fixturenames", ())}
    given = {name: address for name in KINDS if (address := os.environ.get(f"TEST_{name.upper()}"))}
    missing = [name for name in KINDS if name not in given and f"{name}_address" in wanted]
    return given | shared_servers(missing, tmp_path_factory.mktemp("servers"))


@pytest.fixture(scope="session")
def kafka_address(server_addresses: dict[str, str]) -> str:
    """``host:port`` of a Kafka whose topics are shared by all tests: use names of your own."""
    return server_addresses["kafka"]


@pytest.fixture(scope="session")
def cassandra_address(server_addresses: dict[str, str]) -> str:
    """``host:port`` of a Cassandra whose keyspaces are shared by all tests: use names of your own."""
    return server_addresses["cassandra"]


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """An S3 server whose buckets are shared by all tests: use names of your own."""
    with S3Server() as server:
        yield server
