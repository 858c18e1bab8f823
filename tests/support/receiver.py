"""A receiver of webhooks on loopback, as good or bad as a test wants it."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from aiohttp import web
from aiohttp.test_utils import TestServer
from standardwebhooks.webhooks import Webhook

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Arrived(NamedTuple):
    """One POST; ``at`` is the time of `time.monotonic`."""

    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def webhook_id(self) -> str:
        return self.headers["webhook-id"]


@dataclass
class Receiver:
    """Answers with one status after the other, the last one for ever, and keeps what it was sent."""

    statuses: tuple[int, ...] = (200,)
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0
    got: list[Arrived] = field(default_factory=list)
    elsewhere: int = 0
    at_once: int = 0
    max_concurrent: int = 0
    url: str = ""
    _closing: asyncio.Event = field(default_factory=asyncio.Event)

    async def _hook(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.got.append(Arrived(headers, await request.read(), time.monotonic()))
        status = self.statuses[min(len(self.got), len(self.statuses)) - 1]
        self.at_once += 1
        self.max_concurrent = max(self.max_concurrent, self.at_once)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.seconds):
                    await self._closing.wait()
        finally:  # cancelled, if the sender is gone
            self.at_once -= 1
        return web.Response(status=status, headers=self.headers)

    async def _elsewhere(self, request: web.Request) -> web.Response:
        self.elsewhere += 1
        return web.Response()

    @asynccontextmanager
    async def listening(self, port: int | None = None) -> AsyncIterator["Receiver"]:
        app = web.Application()
        app.add_routes([web.post("/hook", self._hook), web.route("*", "/elsewhere", self._elsewhere)])
        async with TestServer(app, host="127.0.0.1", port=port) as server:
            self.url = str(server.make_url("/hook"))
            try:
                yield self
            finally:
                self._closing.set()

    async def wait_for(self, count: int, timeout: float = 240) -> list[Arrived]:
        async with asyncio.timeout(timeout):
            while len(self.got) < count:  # noqa: ASYNC110 - two servers tell nobody of each other
                await asyncio.sleep(0.02)
        return self.got

    def verified(self) -> list[Mapping[str, object]]:
        """What was said, as the reference implementation of Standard Webhooks accepts it."""
        return [Webhook(SECRET).verify(body, headers) for headers, body, _ in self.got]
