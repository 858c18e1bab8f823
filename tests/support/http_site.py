"""HTTP servers on loopback that answer as a test wants, and a DNS to find them by."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Heard:
    """A request as it came over the wire."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


Answer = Callable[[Heard, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Site:
    """A server under test conditions: where it listens, and all that it saw."""

    port: int = 0
    connections: int = 0
    heard: list[Heard] = field(default_factory=list)

    def url(self, path: str = "/a.jpg", host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"


@asynccontextmanager
async def serving(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[Site]:
    """An HTTP server on 127.0.0.1 that writes whatever ``answer`` writes, then closes the connection."""
    site = Site()
    tasks = set()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        site.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            request, *lines = head.rstrip().split("\r\n")
            method, target, _ = request.split(" ")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            heard = Heard(method, target, headers, body)
            site.heard.append(heard)
            await answer(heard, writer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(converse, "127.0.0.1", 0, ssl=tls)
    site.port = server.sockets[0].getsockname()[1]
    try:
        yield site
    finally:
        server.close()
        for task in filter(None, tasks):
            task.cancel()
        await asyncio.gather(*filter(None, tasks), return_exceptions=True)


@asynccontextmanager
async def serving_bytes(octets: bytes) -> AsyncIterator[int]:
    """A server, by its port, that says ``octets`` to whoever comes, whatever they say."""

    async def converse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(octets)
        writer.close()

    async with await asyncio.start_server(converse, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


def message(status: int = 200, body: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
    lines = {"Content-Length": str(len(body)), "Connection": "close", **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status} Whatever\r\n{head}\r\n".encode() + body


def says(status: int = 200, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
    return writes(message(status, body, headers))


def writes(octets: bytes) -> Answer:
    async def answer(_: Heard, writer: asyncio.StreamWriter) -> None:
        writer.write(octets)

    return answer


def drips(first: bytes, drop: bytes, every: float = 0.02) -> Answer:
    """Sends ``first`` and then ``drop`` again and again, for as long as it is listened to."""

    async def answer(_: Heard, writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        while True:
            await writer.drain()
            await asyncio.sleep(every)
            writer.write(drop)

    return answer


class Names:
    """A DNS of the test's own: each look-up of a name takes the next of its answers, the last one for ever."""

    def __init__(self, **answers: Sequence[Sequence[str]]) -> None:
        self._answers = {name.replace("_", "."): list(given) for name, given in answers.items()}
        self.lookups: list[str] = []

    def __call__(self, host: str) -> Sequence[str]:
        self.lookups.append(host)
        answers = self._answers[host.removesuffix(".")]
        return answers.pop(0) if len(answers) > 1 else answers[0]
