"""The whole system on this machine: embedded servers where no others are named, the API, the workers."""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import aiohttp
import structlog

from infra.cli.init import initialise
from infra.embedded import EmbeddedServer, EmbeddedServers
from infra.embedded.cassandra import EmbeddedCassandra
from infra.embedded.kafka import EmbeddedKafka
from infra.embedded.process import ChildProcess
from infra.errors import ExplainedError
from infra.kafka import group_is_working
from infra.settings import Settings, environment_of
from infra.supervisor import Supervised, Supervisor
from streams.topics import Topics

log = structlog.get_logger(__name__)

READY_TIMEOUT = 120.0
POLL_SECONDS = 0.1
GRACE_SECONDS = 12.0  # SIGTERM drains and commits within 10 s


class NotReadyError(ExplainedError):
    """The system did not become ready in time; the message says which part."""


@asynccontextmanager
async def running_system(settings: Settings, *, compress_workers: int) -> AsyncIterator[Settings]:
    """Start everything and keep it running; yields the settings with the addresses filled in.

    All processes are children of this one and end with it, however it ends.
    """
    port = settings.port or _free_port(settings.host)
    _require_free(settings.host, port)
    async with AsyncExitStack() as stack:
        servers: dict[str, EmbeddedServer] = {}
        if not settings.kafka_brokers:
            servers["kafka_brokers"] = EmbeddedKafka(settings.data_dir)
        if not settings.cassandra_hosts:
            servers["cassandra_hosts"] = EmbeddedCassandra(settings.data_dir)
        await stack.enter_async_context(EmbeddedServers(*servers.values()))
        addresses = {name: server.address for name, server in servers.items()}
        settings = settings.model_copy(
            update={
                "port": port,
                "public_url": settings.public_url or f"http://{settings.host}:{port}",
                **addresses,
            }
        )
        await initialise(settings)
        server_supervisor = Supervisor()
        stack.push_async_callback(server_supervisor.stop)
        for server in servers.values():
            server_supervisor.watch(Supervised(partial(_process_of, server), server.start, server.stop))
        # The roles are stopped before the servers: what they have under way is still written down.
        supervisor = Supervisor()
        stack.push_async_callback(supervisor.stop)
        for name, arguments in _roles(compress_workers):
            child = ChildProcess(
                name,
                [sys.executable, "-m", "infra.cli", *arguments],
                log_path=settings.data_dir / "logs" / f"{name}.log",
                env=environment_of(settings),
            )
            await child.start()
            supervisor.watch(Supervised(partial(_itself, child), child.start, partial(child.stop, GRACE_SECONDS)))
        await _wait_until_ready(settings)
        yield settings


def _roles(compress_workers: int) -> list[tuple[str, list[str]]]:
    compress = [
        (f"compress-{number}" if compress_workers > 1 else "compress", ["worker", "compress"])
        for number in range(1, compress_workers + 1)
    ]
    return [
        ("api", ["api"]),
        ("progress", ["worker", "progress"]),
        ("projections", ["worker", "projections"]),
        *compress,
    ]


def _process_of(server: EmbeddedServer) -> ChildProcess:
    return server.process


def _itself(child: ChildProcess) -> ChildProcess:
    return child


async def _wait_until_ready(settings: Settings) -> None:
    """Return when an upload would be processed: the API is ready and every app has its partitions."""
    topics = Topics(settings.topic_prefix)
    deadline = asyncio.get_running_loop().time() + READY_TIMEOUT
    missing = {"api": True, **{topics.group(app): True for app in ("progress", "compress", "projections")}}
    while True:
        for part in [part for part, waiting in missing.items() if waiting]:
            ready = await (_api_is_ready(settings) if part == "api" else group_is_working(settings, part))
            missing[part] = not ready
        waiting = [part for part, is_missing in missing.items() if is_missing]
        if not waiting:
            return
        if asyncio.get_running_loop().time() > deadline:
            raise NotReadyError(
                f"not ready after {READY_TIMEOUT:g} s: {', '.join(waiting)} (logs in {settings.data_dir}/logs)"
            )
        await asyncio.sleep(POLL_SECONDS)


async def _api_is_ready(settings: Settings) -> bool:
    url = f"http://{settings.host}:{settings.port}/readyz"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5), trust_env=False) as session,
            session.get(url) as response,
        ):
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _require_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise NotReadyError(
                f"{host}:{port} can't be listened on: {error.strerror}; choose another with --port"
            ) from None
