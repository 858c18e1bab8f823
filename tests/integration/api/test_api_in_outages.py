"""The API while a server is away: whoever needs that is told to come back, whoever doesn't is not."""

import hashlib
from uuid import uuid4

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import BaseTestServer

from api.context import CONTEXT
from api.uploads.idempotency import Claim, IdempotencyKeys
from infra.settings import Settings
from tests.support.api_server import serving_api
from tests.support.changelog import Changelog
from tests.support.examples import NOON, created
from tests.support.tcp_proxy import TcpProxy

pytestmark = pytest.mark.slow

CSV = b"S. No.,Product Name,Input Image URLs\n1,Shoe,https://shop.example/shoe.jpg\n"


async def require_come_back(server: BaseTestServer, key: str) -> None:
    headers = {"Content-Type": "text/csv", "Idempotency-Key": key}
    async with (
        aiohttp.ClientSession() as client,
        client.post(server.make_url("/api/upload"), data=CSV, headers=headers) as answer,
    ):
        assert (answer.status, answer.content_type) == (503, "application/problem+json")
        assert int(answer.headers["Retry-After"]) > 0


async def test_idempotency_key_without_cassandra_is_unavailable(settings: Settings, request_id: str) -> None:
    assert settings.cassandra_hosts is not None
    door = TcpProxy(settings.cassandra_hosts)
    await door.open()
    try:
        async with serving_api(settings.model_copy(update={"cassandra_hosts": door.address})) as (server, _):
            await door.shut()
            await require_come_back(server, request_id)
    finally:
        await door.shut()


async def lag(app: web.Application, settings: Settings) -> None:
    """Write what the API's view does not learn any more."""
    await app[CONTEXT].view.stop()
    async with Changelog(settings) as changelog:
        await changelog.fold(created(str(uuid4())))


async def test_idempotency_key_with_lagging_view_is_unavailable(settings: Settings, request_id: str) -> None:
    async with serving_api(settings) as (server, app):
        claim = Claim(request_id, hashlib.sha256(CSV).hexdigest(), NOON, is_new=True)
        await IdempotencyKeys(app[CONTEXT].session).claim("", request_id, claim)
        await lag(app, settings)
        await require_come_back(server, request_id)


async def test_guessed_image_url_causes_no_kafka_read(settings: Settings, request_id: str) -> None:
    async with serving_api(settings) as (server, app), aiohttp.ClientSession() as client:
        await lag(app, settings)
        async with client.get(server.make_url(f"/images/{request_id}/0.jpg")) as answer:
            assert answer.status == 404
