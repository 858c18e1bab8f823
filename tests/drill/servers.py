"""Servers of a drill behind proxies that can cut off single processes, and second workers, all supervised."""

import asyncio
import contextlib
import sys
import threading
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from infra.devserver.cassandra import EmbeddedCassandra
from infra.devserver.ports import LOOPBACK, free_ports
from infra.devserver.process import ChildProcess
from infra.devserver.server import EmbeddedServer
from infra.devserver.servers import EmbeddedServers
from infra.devserver.supervisor import Supervised, Supervisor
from tests.drill.cluster import NODES, ClusterCassandra, ClusterKafka, ProxiedKafka, is_answered_by_all, is_in_sync
from tests.support.waiting import wait_until

START_SECONDS = 300.0
CALL_SECONDS = 60.0
STOP_SECONDS = 120.0
WORKER_GRACE = 12.0
CHUNK_BYTES = 65536
WHOLE_SECONDS = 180.0

Ports = Callable[[], Collection[int]]


class Cut(StrEnum):
    """How a process is cut off."""

    BROKEN = "broken"  # connections are reset, new ones too
    HALF_OPEN = "half-open"  # connections stay open and new ones are accepted, but all bytes are swallowed


class CutProxy:
    """A TCP proxy in front of one server; clients are told apart by the local ports of their connections."""

    def __init__(self, server: Callable[[], tuple[str, int]], host: str = LOOPBACK, port: int | None = None) -> None:
        self._behind = server
        self._server: asyncio.Server | None = None
        self._tasks: dict[asyncio.Task[None], int] = {}
        self._swallowed: set[int] = set()
        self._cut: tuple[Cut, Ports] | None = None
        self.host = host
        self.port = next(free_ports()) if port is None else port

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, self.host, self.port)

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
            behind_reader, behind = await asyncio.open_connection(*self._behind())
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


class DrillServers:
    """The servers and their proxies by name ("kafka", "cassandra"), in an event loop of their own thread."""

    def __init__(self, data_dir: Path, *, cluster: bool = False) -> None:
        self.is_cluster = cluster
        kafkas: list[ProxiedKafka] = []
        cassandras: list[EmbeddedCassandra] = []
        if cluster:
            nodes: list[ClusterKafka] = []
            nodes += (ClusterKafka(data_dir, number, nodes) for number in range(1, NODES + 1))
            kafkas += nodes
            ports = dict(zip(EmbeddedCassandra.port_names, free_ports(), strict=False))
            rings = [ClusterCassandra(data_dir, number, ports) for number in range(1, NODES + 1)]
            cassandras += rings
            # The driver learns the addresses of the proxies from the nodes, which all have the same port.
            of_cassandra = [CutProxy(partial(_behind, node), node.proxy_host, ports["client"]) for node in rings]
        else:
            kafkas.append(ProxiedKafka(data_dir))
            cassandras.append(EmbeddedCassandra(data_dir))
            of_cassandra = [CutProxy(partial(_behind, cassandras[0]))]
        of_kafka = [CutProxy(partial(_behind, kafka)) for kafka in kafkas]
        for kafka, proxy in zip(kafkas, of_kafka, strict=True):
            kafka.proxy_address = proxy.address
        self.servers: dict[str, Sequence[EmbeddedServer]] = {"kafka": kafkas, "cassandra": cassandras}
        self.proxies = {"kafka": of_kafka, "cassandra": of_cassandra}
        self._supervisor = Supervisor()
        self._workers = Supervisor()
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
        factor = str(NODES if self.is_cluster else 1)
        return {
            "SHRINKSTREAM_KAFKA_BROKERS": ",".join(proxy.address for proxy in self.proxies["kafka"]),
            "SHRINKSTREAM_CASSANDRA_HOSTS": ",".join(proxy.address for proxy in self.proxies["cassandra"]),
            "SHRINKSTREAM_KAFKA_REPLICATION_FACTOR": factor,
            "SHRINKSTREAM_CASSANDRA_REPLICATION_FACTOR": factor,
        }

    def run(self, work: Coroutine[Any, Any, None], timeout: float = CALL_SECONDS) -> None:
        """Run a coroutine of a proxy in the loop of this thread."""
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    def cut(self, server: str, how: Cut, ports: Ports) -> None:
        """Cut the process with these ports off from all nodes of a server, until `restore`."""
        for proxy in self.proxies[server]:
            self.run(proxy.cut(how, ports))

    def restore(self, server: str) -> None:
        for proxy in self.proxies[server]:
            self.run(proxy.restore())

    @property
    def brokers(self) -> str:
        """Their own addresses, not those of the proxies."""
        return ",".join(server.address for server in self.servers["kafka"])

    def wait_until_whole(self, keyspace: str = "shrinkstream") -> None:
        """Wait until all nodes run, and all have caught up with the others."""
        wait_until(lambda: is_in_sync(self.brokers, len(self.servers["kafka"])), "all are in sync", WHOLE_SECONDS)
        for node in self.servers["cassandra"]:
            answered = partial(is_answered_by_all, node, keyspace)
            wait_until(answered, f"all replicas answer {node.address}", WHOLE_SECONDS)

    def start_worker(self, role: str, log_path: Path, environment: Mapping[str, str]) -> None:
        """Start a worker beside those of `up`, and restart it whenever it ends."""
        command = [sys.executable, "-m", "infra.cli", "worker", role]
        child = ChildProcess(log_path.stem, command, log_path=log_path, env=environment)

        async def start() -> None:
            await child.start()
            self._workers.watch(Supervised(lambda: child, child.start, partial(child.stop, WORKER_GRACE)))

        self.run(start())

    def stop_workers(self) -> None:
        self.run(self._workers.stop(), STOP_SECONDS)

    async def _start(self) -> None:
        for proxies in self.proxies.values():
            for proxy in proxies:
                await proxy.open()
        kafkas, cassandras = self.servers["kafka"], self.servers["cassandra"]
        # The seed first: a node that finds none would be a ring by itself.
        await EmbeddedServers(*kafkas, cassandras[0]).start()
        await EmbeddedServers(*cassandras[1:]).start()
        for server in (*kafkas, *cassandras):
            self._supervisor.watch(Supervised(partial(_process_of, server), server.start, server.stop))

    async def _stop(self) -> None:
        await self._supervisor.stop()
        for proxies in self.proxies.values():
            for proxy in proxies:
                await proxy.close()


def _process_of(server: EmbeddedServer) -> ChildProcess:
    return server.process


def _behind(server: EmbeddedServer) -> tuple[str, int]:
    return server.host, server.port
