"""The session with a real Cassandra, over connections that are not kind."""

import pytest

from infra.cassandra.session import Session
from infra.settings import Settings
from streams.projections.history import History
from streams.webhooks.message import completion_id
from streams.webhooks.store import Deliveries
from tests.integration.conftest import new_keyspace
from tests.support.examples import completed, created
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


@pytest.fixture
def own(cassandra_settings: Settings, cassandra_address: str) -> Settings:
    """A keyspace that this test may change."""
    return cassandra_settings.model_copy(update={"cassandra_keyspace": new_keyspace(cassandra_address)})


async def test_columns_of_newer_version_change_no_answer(own: Settings, request_id: str) -> None:
    """The first in each order of columns; the newer version prepares the same queries again."""
    older, newer = await Session.connect(own), await Session.connect(own)

    async def answers(session: Session) -> list[object]:
        history, deliveries = History(session), Deliveries(session, 1)
        return [await history.request(request_id), await deliveries.load(completion_id(request_id, 0))]

    try:
        completion = completed(request_id, webhook_url="https://shop.example/hook")
        for event in created(request_id), completion:
            await History(older).record(event)
        await Deliveries(older, 1).record(completion)
        before = await answers(older)
        assert None not in before
        for column in "requests ADD a text", "webhook_deliveries ADD a text static", "webhook_deliveries ADD aa text":
            await newer.execute_script(f"ALTER TABLE {column}")
        for session in newer, older, newer, older:
            assert await answers(session) == before
    finally:
        await older.close()
        await newer.close()
