"""The session with a real Cassandra, over connections that are not kind."""

import pytest

from infra.cassandra.session import Session
from infra.settings import Settings
from tests.support.tcp_proxy import TcpProxy


@pytest.mark.parametrize("head", [2, 5, 9])
async def test_answers_that_arrive_in_pieces_are_read(cassandra_settings: Settings, head: int) -> None:
    """Shorter, as long as and longer than most headers of the protocol."""
    assert cassandra_settings.cassandra_hosts is not None
    proxy = TcpProxy(cassandra_settings.cassandra_hosts, head=head)
    await proxy.open()
    session = await Session.connect(cassandra_settings.model_copy(update={"cassandra_hosts": proxy.address}))
    try:
        for _ in range(20):
            assert await session.execute("SELECT number FROM schema_migrations")
    finally:
        await session.close()
        await proxy.shut()
