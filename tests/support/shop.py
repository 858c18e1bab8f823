"""A shop as the system meets it: images to fetch, some of them bad, and a receiver of webhooks."""

import asyncio
import io
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from aiohttp import web
from PIL import Image

SECRET = "whsec_c2hyaW5rc3RyZWFtIHRlc3RzIHVzZSB0aGlzIHNlY3JldA=="


@dataclass(frozen=True)
class Delivery:
    """One webhook as it arrived."""

    path: str
    headers: dict[str, str]
    body: bytes


def photo(width: int = 320, height: int = 240, seed: int = 0) -> bytes:
    """A JPEG that compresses well at quality 50."""
    image = Image.effect_mandelbrot((width, height), (-2.0, -1.5 + seed / 100, 1.0, 1.5), 90).convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@dataclass
class Shop:
    """A web server on loopback, in a thread of its own; `files` may be filled at any time."""

    files: dict[str, bytes] = field(default_factory=dict)
    deliveries: list[Delivery] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    webhook_answers: dict[str, list[int]] = field(default_factory=dict)
    slow_seconds: float = 60
    secret: str = SECRET
    address: str = ""

    def __enter__(self) -> Self:
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._started.wait(60)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def add(self, name: str, content: bytes | None = None) -> str:
        """Put a file on offer; returns its URL."""
        self.files[name] = photo(seed=len(self.files)) if content is None else content
        return f"{self.url}/files/{name}"

    def received(self, request_id: str) -> list[Delivery]:
        """The webhooks about one request."""
        return [delivery for delivery in self.deliveries if request_id.encode() in delivery.body]

    def wait_for_deliveries(self, request_id: str, count: int, timeout: float = 240) -> list[Delivery]:
        deadline = time.monotonic() + timeout
        while len(self.received(request_id)) < count:
            assert time.monotonic() < deadline, f"{len(self.received(request_id))} of {count} webhooks arrived"
            time.sleep(0.05)
        return self.received(request_id)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        app = web.Application()
        app.router.add_get("/files/{name}", self._file)
        app.router.add_get("/slow", self._slow)
        app.router.add_post("/webhook/{name}", self._webhook)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        self.address = f"{host}:{port}"
        self._started.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _file(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        self.fetched.append(name)
        content = self.files.get(name)
        if content is None:
            raise web.HTTPNotFound
        return web.Response(body=content, content_type="application/octet-stream")

    async def _slow(self, request: web.Request) -> web.Response:
        await asyncio.sleep(self.slow_seconds)
        return web.Response()

    async def _webhook(self, request: web.Request) -> web.Response:
        self.deliveries.append(
            Delivery(
                request.path, {name.lower(): value for name, value in request.headers.items()}, await request.read()
            )
        )
        answers = self.webhook_answers.get(request.match_info["name"], [])
        return web.Response(status=answers.pop(0) if answers else 204)
