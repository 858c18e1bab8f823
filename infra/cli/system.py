"""The whole system on one machine: API, workers, and embedded Kafka and Cassandra unless others are configured."""

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
from pydantic import SecretStr

from infra.cli.init import initialise
from infra.devserver.cassandra import EmbeddedCassandra
from infra.devserver.kafka import EmbeddedKafka
from infra.devserver.ports import LOOPBACK, free_ports, remembered_ports
from infra.devserver.process import ChildProcess
from infra.devserver.security import Security
from infra.devserver.server import EmbeddedServer
from infra.devserver.servers import EmbeddedServers
from infra.devserver.supervisor import Supervised, Supervisor
from infra.errors import EXIT_FAILED, ExplainedError
from infra.observability.metrics import Role
from infra.settings import PREFIX, Settings, environment_of

TARGETS = "prometheus-targets.json"
"""Prometheus file_sd targets, in the data dir."""
WORKER_PORTS = "worker-ports.json"
READY_TIMEOUT = 120.0
POLL_SECONDS = 0.1
GRACE_SECONDS = 12.0  # SIGTERM drains and commits within 10 s


class NotReadyError(ExplainedError):
    """The system did not become ready; the message names the process."""


@asynccontextmanager
async def running_system(settings: Settings, *, compress_workers: int) -> AsyncIterator[Settings]:
    """Start and supervise everything; yields the settings with the actual addresses.

    All processes are children of this one and never outlive it.
    """
    port = settings.port or next(free_ports(settings.host))
    _require_free(settings.host, port)
    async with AsyncExitStack() as stack:
        _make_private(settings.data_dir)
        security = Security.remembered(settings.data_dir / "password")
        servers: list[EmbeddedServer] = []
        used: dict[str, Any] = {"port": port}
        if not settings.kafka_brokers:
            servers.append(kafka := EmbeddedKafka(settings.data_dir, security))
        if not settings.cassandra_hosts:
            servers.append(cassandra := EmbeddedCassandra(settings.data_dir, security))
        await stack.enter_async_context(EmbeddedServers(*servers))
        if not settings.kafka_brokers:
            used |= {
                "kafka_brokers": kafka.address,
                "kafka_security_protocol": kafka.protocol,
                "kafka_sasl_mechanism": "PLAIN",
                "kafka_sasl_username": security.username,
                "kafka_sasl_password": SecretStr(security.password),
            }
        if not settings.cassandra_hosts:
            used |= {
                "cassandra_hosts": cassandra.address,
                "cassandra_username": security.username,
                "cassandra_password": SecretStr(security.password),
                "cassandra_tls": False,
                "cassandra_batch_bytes": EmbeddedCassandra.batch_bytes,
            }
        settings = settings.model_copy(update=used)
        settings = settings.model_copy(update={"public_url": settings.effective_public_url})
        await initialise(settings)
        server_supervisor = Supervisor()
        stack.push_async_callback(server_supervisor.stop)
        for server in servers:
            server_supervisor.watch(Supervised(partial(_process_of, server), server.start, server.stop))
        # Stops before the servers, so that workers can drain and commit.
        supervisor = Supervisor()
        stack.push_async_callback(supervisor.stop)
        workers = _workers(compress_workers)
        ports = remembered_ports(settings.data_dir / WORKER_PORTS, list(workers))
        addresses = {"api": settings.own_address, **{name: f"{LOOPBACK}:{at}" for name, at in ports.items()}}
        roles: dict[str, Role] = {"api": "api", **workers}
        _write_targets(settings.data_dir / TARGETS, addresses, roles)
        children = []
        for name, role in roles.items():
            own = {"worker_host": LOOPBACK, "worker_port": ports.get(name)}
            child = ChildProcess(
                name,
                [sys.executable, "-m", "infra.cli", *(["api"] if role == "api" else ["worker", role])],
                log_path=settings.data_dir / "logs" / f"{name}.log",
                env=_environment(settings.model_copy(update=own), role),
            )
            await child.start()
            children.append(child)
            supervisor.watch(Supervised(partial(_itself, child), child.start, partial(child.stop, GRACE_SECONDS)))
        await _wait_until_ready(settings, addresses, children)
        yield settings


def _make_private(data_dir: Path) -> None:
    """Keep other users of this machine out of what `up` writes; a data dir that was there before keeps its mode."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in ("faust", "logs", "spool", "storage"):
        folder = data_dir / name
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
    _make_file_private(data_dir / WORKER_PORTS)


def _make_file_private(file: Path) -> None:
    file.touch(mode=0o600)
    file.chmod(0o600)


def _environment(settings: Settings, role: Role) -> dict[str, str]:
    """This process's environment with the settings of a child, without secrets that its role doesn't need."""
    withheld = (PREFIX, "AWS_") if role == "progress" else (PREFIX,)
    others = {name: value for name, value in os.environ.items() if not name.upper().startswith(withheld)}
    return {**others, **environment_of(settings, role)}


def _workers(compress_workers: int) -> dict[str, Role]:
    """Worker name → role."""
    workers: dict[str, Role] = {"progress": "progress", "projections": "projections"}
    for number in range(1, compress_workers + 1):
        workers[f"compress-{number}" if compress_workers > 1 else "compress"] = "compress"
    return workers


def _write_targets(file: Path, addresses: Mapping[str, str], roles: Mapping[str, Role]) -> None:
    """Write the ``/metrics`` targets for Prometheus (https://prometheus.io/docs/guides/file-sd/)."""
    targets = [
        {"targets": [address], "labels": {"job": "shrinkstream", "role": roles[name], "process": name}}
        for name, address in addresses.items()
    ]
    partial_file = file.with_suffix(".partial")
    _make_file_private(partial_file)
    partial_file.write_text(json.dumps(targets, indent=2) + "\n")
    partial_file.replace(file)


def _process_of(server: EmbeddedServer) -> ChildProcess:
    return server.process


def _itself(child: ChildProcess) -> ChildProcess:
    return child


async def _wait_until_ready(settings: Settings, addresses: Mapping[str, str], children: list[ChildProcess]) -> None:
    """Wait until every process has passed its readiness probe once.

    Raises NotReadyError at the timeout, or when a process exits with ``EXIT_FAILED``, which a restart can't fix.
    """
    deadline = asyncio.get_running_loop().time() + READY_TIMEOUT
    pending = dict(addresses)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5), trust_env=False) as session:
        while pending:
            for name, address in list(pending.items()):
                if await _is_ready(session, address):
                    del pending[name]
            for child in children:
                if child.returncode == EXIT_FAILED:
                    raise NotReadyError(child.exit_summary())
            if pending and asyncio.get_running_loop().time() > deadline:
                raise NotReadyError(
                    f"not ready after {READY_TIMEOUT:g} s: {', '.join(pending)} (logs in {settings.data_dir}/logs)"
                )
            await asyncio.sleep(POLL_SECONDS)


async def _is_ready(session: aiohttp.ClientSession, address: str) -> bool:
    try:
        async with session.get(f"http://{address}/readyz") as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _require_free(host: str, port: int) -> None:
    with socket.socket(_family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise NotReadyError(
                f"cannot listen on {host}:{port}: {error.strerror}; choose another port with --port"
            ) from None
