"""The API while Kafka is away: an honest 503 in time, and all of it works again afterwards."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from api.app import create_app
from api.context import CONTEXT, open_context
from infra.devserver.kafka import EmbeddedKafka
from infra.kafka import create_topics
from infra.settings import Settings
from streams.log.topics import Topics
from tests.support.outage import paused
from tests.support.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.time_limit(240)]

CSV = b"S. No.,Product Name,Input Image URLs\n" + b"".join(
    b"%d,Shoe,https://shop.example/s.jpg\n" % n for n in range(3)
)
CLIENT_TIMEOUT = aiohttp.ClientTimeout(total=30)  # 15 s on a machine that does nothing else


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

    async def upload(self, **headers: str) -> tuple[int, Any]:
        return await self.call("POST", "/api/upload", data=CSV, headers={"Content-Type": "text/csv", **headers})

    async def answers(self, status: int, method: str, path: str) -> bool:
        return (await self.call(method, path))[0] == status

    async def upload_until_accepted(self) -> str:
        accepted: list[str] = []

        async def is_accepted() -> bool:
            status, body = await self.upload()
            accepted.extend([body["requestId"]] if status == 202 else [])
            return bool(accepted)

        await eventually(is_accepted, 30)
        return accepted[0]

    async def requests(self) -> set[str]:
        status, body = await self.call("GET", "/api/requests?limit=200")
        assert status == 200
        return {item["requestId"] for item in body["items"]}


@asynccontextmanager
async def serving(kafka: EmbeddedKafka, cassandra_settings: Settings) -> AsyncIterator[Api]:
    settings = cassandra_settings.model_copy(
        update={"kafka_brokers": kafka.address, "topic_prefix": f"test-{uuid4().hex[:8]}", "partitions": 2}
    )
    await create_topics(settings, Topics(settings.topic_prefix).configs())
    async with open_context(settings) as context:
        app = create_app(context)
        async with (
            TestServer(app, host="127.0.0.1") as server,
            aiohttp.ClientSession(timeout=CLIENT_TIMEOUT) as session,
        ):
            yield Api(app, str(server.make_url("")).rstrip("/"), session)


async def test_every_command_is_answered_in_an_outage(tmp_path: Path, cassandra_settings: Settings) -> None:
    async with EmbeddedKafka(tmp_path) as kafka, serving(kafka, cassandra_settings) as api:
        known = await api.upload_until_accepted()
        accepted = {known}
        for _ in range(2):
            await eventually(lambda: api.answers(200, "GET", "/readyz"), 30)
            with paused(kafka):
                answers = await asyncio.gather(
                    api.upload(),
                    api.upload(**{"Idempotency-Key": str(uuid4())}),
                    *(api.call("POST", f"/api/requests/{known}/{command}") for command in ("cancel", "retry")),
                )
                assert [status for status, _ in answers] == [503] * 4
                assert "no request was created" in answers[0][1]["detail"]
                await eventually(lambda: api.answers(503, "GET", "/readyz"), 30)
                await eventually(lambda: api.answers(503, "GET", f"/api/status/{known}"), 30)
            accepted.add(await api.upload_until_accepted())
            await eventually(lambda: api.answers(200, "GET", "/readyz"), 30)
        assert await api.requests() == accepted


async def test_outage_between_two_events_creates_no_request(
    tmp_path: Path, cassandra_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kafka stops after it was asked whether it is there."""
    async with EmbeddedKafka(tmp_path) as kafka, serving(kafka, cassandra_settings) as api:
        accepted = await api.upload_until_accepted()

        async def answer_at_once() -> dict[Any, int]:
            return {}

        with monkeypatch.context() as patch:
            patch.setattr(api.app[CONTEXT].view, "ask_ends", answer_at_once)
            with paused(kafka):
                status, problem = await api.upload()
                assert status == 503
                assert "no request was created" in problem["detail"]
                assert api.app[CONTEXT].events.problem is not None
        later = await api.upload_until_accepted()
        assert await api.requests() == {accepted, later}
