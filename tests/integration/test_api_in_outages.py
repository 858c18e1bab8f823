"""Uploads with an Idempotency-Key while a server that they need is away: told to come back, as the client can."""

import hashlib
from uuid import uuid4

import aiohttp
from aiohttp.test_utils import BaseTestServer

from api.context import CONTEXT
from api.idempotency import Claim, IdempotencyKeys
from infra.settings import Settings
from tests.event_loop import run
from tests.examples import NOON, created
from tests.integration.test_event_stream import serving
from tests.integration.test_history import Door
from tests.integration.test_progress_view import Changelog

CSV = b"S. No.,Product Name,Input Image URLs\n1,Shoe,https://shop.example/shoe.jpg\n"


async def require_come_back(server: BaseTestServer, key: str) -> None:
    headers = {"Content-Type": "text/csv", "Idempotency-Key": key}
    async with (
        aiohttp.ClientSession() as client,
        client.post(server.make_url("/api/upload"), data=CSV, headers=headers) as answer,
    ):
        assert (answer.status, answer.content_type) == (503, "application/problem+json")
        assert int(answer.headers["Retry-After"]) > 0


def test_without_cassandra_nobody_knows_whether_the_key_was_used(settings: Settings, request_id: str) -> None:
    async def test() -> None:
        assert settings.cassandra_hosts is not None
        door = Door(settings.cassandra_hosts)
        await door.open()
        try:
            async with serving(settings.model_copy(update={"cassandra_hosts": door.address})) as (server, _):
                await door.shut()
                await require_come_back(server, request_id)
        finally:
            await door.shut()

    run(test())


def test_with_a_view_that_lags_nobody_knows_whether_the_first_upload_got_through(
    settings: Settings, request_id: str
) -> None:
    async def test() -> None:
        async with serving(settings) as (server, app), Changelog(settings) as changelog:
            claim = Claim(request_id, hashlib.sha256(CSV).hexdigest(), NOON, is_new=True)
            await IdempotencyKeys(app[CONTEXT].session).claim("", request_id, claim)
            await app[CONTEXT].view.stop()
            await changelog.fold(created(str(uuid4())))  # which the view does not learn any more
            await require_come_back(server, request_id)

    run(test())
