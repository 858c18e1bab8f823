"""Kafka and Cassandra of a drill, restarted by a supervisor, each behind a proxy that can cut off single processes."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Collection, Coroutine
from enum import StrEnum
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from infra.devserver import EmbeddedServer, EmbeddedServers
from infra.devserver.cassandra import EmbeddedCassandra
from infra.devserver.kafka import EmbeddedKafka
from infra.devserver.ports import LOOPBACK, free_ports
from infra.devserver.process import ChildProcess
from infra.devserver.supervisor import Supervised, Supervisor

START_SECONDS = 150.0
CALL_SECONDS = 30.0
STOP_SECONDS = 60.0
CHUNK_BYTES = 65536

Ports = Callable[[], Collection[int]]


class Cut(StrEnum):
    """How a process is cut off."""

    BROKEN = "broken"  # connections are reset, new ones too
    HALF_OPEN = "half-open"  # connections stay open and new ones are accepted, but all bytes are swallowed


class CutProxy:
    """A TCP proxy in front of one server; clients are told apart by the local ports of their connections."""

    def __init__(self, server_port: Callable[[], int]) -> None:
        self._server_port = server_port
        self._server: asyncio.Server | None = None
        self._tasks: dict[asyncio.Task[None], int] = {}
        self._swallowed: set[int] = set()
        self._cut: tuple[Cut, Ports] | None = None
        self.port = next(free_ports())

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, LOOPBACK, self.port)

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._end(set(self._tasks.values()))

    async def cut(self, how: Cut, ports: Ports) -> None:
        """Cut off the process that connects from these ports; ``ports`` is asked again for each new connection."""
        self._cut = (how, ports)
        if how is Cut.HALF_OPEN:
            self._swallowed |= set(ports())
        else:
            await self._end(ports())

    async def restore(self) -> None:
        """Let it through again; connections that lost bytes are reset."""
        self._cut = None
        swallowed, self._swallowed = self._swallowed, set()
        await self._end(swallowed)

    async def _end(self, ports: Collection[int]) -> None:
        ended = [task for task, port in self._tasks.items() if port in ports]
        for task in ended:
            task.cancel()
        await asyncio.gather(*ended, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = writer.get_extra_info("peername")[1]
        task = asyncio.current_task()
        assert task is not None
        self._tasks[task] = port
        behind: asyncio.StreamWriter | None = None
        try:
            if self._cut is not None and port in self._cut[1]():
                if self._cut[0] is Cut.BROKEN:
                    return
                self._swallowed.add(port)
            behind_reader, behind = await asyncio.open_connection(LOOPBACK, self._server_port())
            copies = [
                asyncio.ensure_future(self._copy(reader, behind, port)),
                asyncio.ensure_future(self._copy(behind_reader, writer, port)),
            ]
            try:
                await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for copy in copies:
                    copy.cancel()
                await asyncio.gather(*copies, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass  # the server is away, or the connection was cut: the client's connection is reset below
        finally:
            del self._tasks[task]
            for end in (writer, behind):
                if end is not None:
                    end.transport.abort()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(CHUNK_BYTES):
                if port not in self._swallowed:
                    writer.write(data)
                    await writer.drain()


class ProxiedKafka(EmbeddedKafka):
    """A Kafka whose clients are sent to a proxy."""

    proxy_address = ""

    async def prepare(self) -> list[str]:
        arguments = await super().prepare()
        properties = self.directory / "kafka.properties"
        old = f"advertised.listeners=CLIENT://{self.address}"
        text = properties.read_text()
        assert old in text
        properties.write_text(text.replace(old, f"advertised.listeners=CLIENT://{self.proxy_address}"))
        return arguments


class DrillServers:
    """Both servers, their proxies (``proxies`` by name) and their supervisor, in an event loop of their own thread."""

    def __init__(self, data_dir: Path) -> None:
        kafka = ProxiedKafka(data_dir)
        self.servers: dict[str, EmbeddedServer] = {"kafka": kafka, "cassandra": EmbeddedCassandra(data_dir)}
        self.proxies = {name: CutProxy(partial(_port_of, server)) for name, server in self.servers.items()}
        kafka.proxy_address = self.proxies["kafka"].address
        self._supervisor = Supervisor()
        self._loop = asyncio.new_event_loop()
        # An embedded server ends with the thread that started it.
        self._thread = threading.Thread(target=self._loop.run_forever, name="drill servers", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.run(self._start(), START_SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.run(self._stop(), STOP_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_SECONDS)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "SHRINKSTREAM_KAFKA_BROKERS": self.proxies["kafka"].address,
            "SHRINKSTREAM_CASSANDRA_HOSTS": self.proxies["cassandra"].address,
        }

    def run(self, work: Coroutine[Any, Any, None], timeout: float = CALL_SECONDS) -> None:
        """Run a coroutine of a proxy in the loop of this thread."""
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    async def _start(self) -> None:
        for proxy in self.proxies.values():
            await proxy.open()
        await EmbeddedServers(*self.servers.values()).start()
        for server in self.servers.values():
            self._supervisor.watch(Supervised(partial(_process_of, server), server.start, server.stop))

    async def _stop(self) -> None:
        await self._supervisor.stop()
        for proxy in self.proxies.values():
            await proxy.close()


def _process_of(server: EmbeddedServer) -> ChildProcess:
    return server.process


def _port_of(server: EmbeddedServer) -> int:
    return server.port
