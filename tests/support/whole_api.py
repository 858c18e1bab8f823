"""A whole API in the process of the test, and a client for it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer

from api.app import create_app
from api.context import open_context
from infra.kafka.topics import create_topics
from infra.settings import Settings
from streams.log.topics import Topics
from tests.support.waiting import eventually

CSV = b"S. No.,Product Name,Input Image URLs\n" + b"".join(
    b"%d,Shoe,https://shop.example/s.jpg\n" % n for n in range(3)
)
CLIENT_TIMEOUT = aiohttp.ClientTimeout(total=120)


class Api:
    """A client of the API in the process of the test."""

    def __init__(self, app: web.Application, base: str, session: aiohttp.ClientSession) -> None:
        self.app = app
        self._base = base
        self._session = session

    async def call(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        async with self._session.request(method, self._base + path, **options) as answer:
            body = await answer.json(content_type=None)
            if answer.status == 503 and path != "/readyz":
                assert answer.content_type == "application/problem+json"
                assert body["type"] == "urn:shrinkstream:problem:unavailable"
                assert int(answer.headers["Retry-After"]) > 0
            return answer.status, body

    async def upload(self, csv: bytes = CSV, key: str | None = None) -> tuple[int, Any]:
        """``key``: Idempotency-Key."""
        headers = {"Content-Type": "text/csv"} | ({"Idempotency-Key": key} if key else {})
        return await self.call("POST", "/api/upload", data=csv, headers=headers)

    async def answers(self, status: int, method: str, path: str) -> bool:
        return (await self.call(method, path))[0] == status

    async def upload_until_accepted(self) -> str:
        accepted: list[str] = []

        async def is_accepted() -> bool:
            status, body = await self.upload()
            accepted.extend([body["requestId"]] if status == 202 else [])
            return bool(accepted)

        await eventually(is_accepted)
        return accepted[0]

    async def requests(self) -> set[str]:
        status, body = await self.call("GET", "/api/requests?limit=200")
        assert status == 200
        return {item["requestId"] for item in body["items"]}


@asynccontextmanager
async def serving(kafka_address: str, cassandra_settings: Settings) -> AsyncIterator[Api]:
    settings = cassandra_settings.model_copy(
        update={"kafka_brokers": kafka_address, "topic_prefix": f"test-{uuid4().hex[:8]}", "partitions": 2}
    )
    await create_topics(settings, Topics(settings.topic_prefix).configs())
    async with open_context(settings) as context:
        app = create_app(context)
        async with (
            TestServer(app, host="127.0.0.1") as server,
            aiohttp.ClientSession(timeout=CLIENT_TIMEOUT) as session,
        ):
            yield Api(app, str(server.make_url("")).rstrip("/"), session)
