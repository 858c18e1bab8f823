"""asyncio client of Cassandra: the driver's futures bridged, with a timeout and bounded retries for every call."""

import asyncio
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypeVar

from cassandra import DriverException, OperationTimedOut, Unavailable
from cassandra import Timeout as CoordinatorTimeout
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import (
    EXEC_PROFILE_DEFAULT,
    Cluster,
    ExecutionProfile,
    NoHostAvailable,
    ResponseFuture,
    ResultSet,
)
from cassandra.cluster import Session as DriverSession
from cassandra.policies import (
    DCAwareRoundRobinPolicy,
    ExponentialReconnectionPolicy,
    RoundRobinPolicy,
    TokenAwarePolicy,
)
from cassandra.query import BatchStatement, BatchType, ConsistencyLevel, PreparedStatement, SimpleStatement, Statement

from infra.errors import ExplainedError
from infra.observability import metrics
from infra.observability.logs import silenced
from infra.observability.readiness import NOT_OPEN, NotReady
from infra.settings import Settings, parse_addresses
from infra.tls import tls_context

T = TypeVar("T")

PROTOCOL_VERSION = 4
"""Of the native protocol. With version 5 the driver loses the first bytes of a segment whose header arrives in parts,
and with them the connection ("CRC mismatch on header", PYTHON-1337 of the driver; 3.30.1 still does)."""
CONNECT_TIMEOUT = 10.0
REQUEST_TIMEOUT = 10.0
RETRY_FOR = 120.0
"""Seconds for which workers retry while Cassandra is unavailable; after that a worker ends and is restarted."""
PAGE_SIZE = 5000
# Unlimited: the driver's default backs off up to ten minutes and gives up after 64 attempts.
RECONNECTION = ExponentialReconnectionPolicy(1.0, 10.0, max_attempts=None)

BATCH = "batch"
_VERB_AND_TABLE = re.compile(r"\s*(\w+)\b.*?(?:\bFROM|\bINTO|(?<=UPDATE))\s+(\w+)", re.DOTALL | re.IGNORECASE)

# Errors worth a retry. Everything else (wrong CQL, missing table) is a defect and must surface.
TRANSIENT_ERRORS = (NoHostAvailable, OperationTimedOut, CoordinatorTimeout, Unavailable, TimeoutError)


class CassandraUnavailableError(ExplainedError):
    """Cassandra can't be reached or doesn't answer; the message names the hosts."""


class Session:
    """A session with one keyspace. Every statement is prepared once, keyed by its text."""

    def __init__(self, cluster: Cluster, driver: DriverSession, hosts: str, batch_bytes: int) -> None:
        self.batch_bytes = batch_bytes
        """Largest batch (bytes) that Cassandra takes without a warning."""
        self._cluster = cluster
        self._driver = driver
        self._hosts = hosts
        self._prepared: dict[str, PreparedStatement] = {}
        self._preparing = asyncio.Lock()

    @classmethod
    async def connect(cls, settings: Settings, *, keyspace: str | None = None) -> "Session":
        """Connect to ``keyspace``; None: that of the settings; empty: none."""
        hosts = settings.cassandra_hosts
        if not hosts:
            raise CassandraUnavailableError(
                "SHRINKSTREAM_CASSANDRA_HOSTS is not set"
                " (only `shrinkstream up` and `demo` start a Cassandra of their own)"
            )
        cluster = _cluster(settings, hosts)
        name = settings.cassandra_keyspace if keyspace is None else keyspace
        try:
            with silenced("cassandra.cluster"):
                driver = await asyncio.to_thread(cluster.connect, name or None)
        except (DriverException, NoHostAvailable, OSError, ValueError) as error:
            await asyncio.to_thread(cluster.shutdown)
            raise CassandraUnavailableError(f"Cassandra can't be used at {hosts}: {_brief(error)}") from None
        return cls(cluster, driver, hosts, settings.cassandra_batch_bytes)

    async def close(self) -> None:
        await asyncio.to_thread(self._cluster.shutdown)

    async def execute(self, cql: str, parameters: Sequence[Any] = (), *, retry_for: float = 0) -> list[Any]:
        """Run a statement and return all its rows; the caller knows that they are few.

        A transient error is retried with exponential backoff and jitter for ``retry_for`` seconds: every statement
        of this system is idempotent. Raises CassandraUnavailableError after that.
        """
        rows: list[Any] = []
        async for page in self.pages(cql, parameters, page_size=PAGE_SIZE, retry_for=retry_for):
            rows += page
        return rows

    async def pages(
        self, cql: str, parameters: Sequence[Any] = (), *, page_size: int, retry_for: float = 0
    ) -> AsyncIterator[list[Any]]:
        """Run a query and yield its rows in pages of at most ``page_size``, fetched lazily.

        ``retry_for`` applies to each page, as in ``execute``.
        """
        state: bytes | None = None
        name = name_of(cql)

        async def fetch() -> tuple[list[Any], bytes | None]:
            statement = (await self._prepare(cql)).bind(parameters)
            statement.fetch_size = page_size
            return await self._run(statement, name, state)

        while True:
            rows, state = await self._retry_transient(fetch, retry_for)
            yield rows
            if state is None:
                return

    async def write_batch(self, writes: Sequence[tuple[str, Sequence[Any]]], *, retry_for: float = 0) -> None:
        """Run several writes as one unlogged batch, at little more than the cost of one; errors as in ``execute``.

        Not atomic: if it fails, any subset of the writes may have been applied.
        """

        async def write() -> None:
            batch = BatchStatement(BatchType.UNLOGGED)
            batch.is_idempotent = True
            for cql, parameters in writes:
                batch.add(await self._prepare(cql), parameters)
            await self._run(batch, BATCH)

        await self._retry_transient(write, retry_for)

    async def _retry_transient(self, run: Callable[[], Awaitable[T]], retry_for: float) -> T:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + retry_for
        backoff = 0.1
        while True:
            try:
                return await run()
            except TRANSIENT_ERRORS as error:
                if loop.time() + backoff > deadline:
                    raise CassandraUnavailableError(
                        f"Cassandra at {self._hosts} doesn't answer: {_brief(error)}"
                    ) from error
            await asyncio.sleep(backoff * random.uniform(0.5, 1))  # noqa: S311 - jitter, no secret
            backoff = min(backoff * 2, 5)

    async def execute_script(self, cql: str) -> None:
        """Run one statement without preparing it, such as a schema change."""
        await asyncio.to_thread(self._driver.execute, cql, timeout=60)

    async def _prepare(self, cql: str) -> PreparedStatement:
        prepared = self._prepared.get(cql)
        if prepared is None:
            async with self._preparing:
                if cql not in self._prepared:
                    statement: PreparedStatement = await asyncio.to_thread(self._driver.prepare, cql)
                    statement.is_idempotent = True
                    self._prepared[cql] = statement
                prepared = self._prepared[cql]
        return prepared

    async def ping(self) -> None:
        """Run a cheap read at the usual consistency level. Raises CassandraUnavailableError.

        The caller sets the deadline. The statement is not prepared, since that would block a thread.
        """
        statement = SimpleStatement("SELECT number FROM schema_migrations LIMIT 1", is_idempotent=True)
        try:
            await self._run(statement, name_of(statement.query_string))
        except TRANSIENT_ERRORS as error:
            raise CassandraUnavailableError(f"Cassandra at {self._hosts} doesn't answer: {_brief(error)}") from None

    async def _run(self, statement: Statement, name: str, state: bytes | None = None) -> tuple[list[Any], bytes | None]:
        """One page, and the paging state of the next one (None: it was the last)."""
        started = time.perf_counter()
        metrics.CASSANDRA_IN_FLIGHT.inc()
        try:
            return await self._fetch_page(statement, state)
        except BaseException as error:
            metrics.CASSANDRA_ERRORS.labels(name, type(error).__name__).inc()
            raise
        finally:
            metrics.CASSANDRA_IN_FLIGHT.dec()
            _seconds_of(name).observe(time.perf_counter() - started)

    async def _fetch_page(self, statement: Statement, state: bytes | None) -> tuple[list[Any], bytes | None]:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[list[Any]] = loop.create_future()

        def succeed(rows: list[Any] | None) -> None:
            if not done.done():
                done.set_result(rows or [])

        def fail(error: Exception) -> None:
            if not done.done():
                done.set_exception(error)

        future: ResponseFuture = self._driver.execute_async(statement, timeout=REQUEST_TIMEOUT, paging_state=state)
        # The driver runs callbacks in its own thread.
        future.add_callbacks(
            lambda rows: loop.call_soon_threadsafe(succeed, rows),
            lambda error: loop.call_soon_threadsafe(fail, error),
        )
        async with asyncio.timeout(REQUEST_TIMEOUT + 5):
            rows = await done
        return rows, ResultSet(future, rows).paging_state


def utc(time: datetime) -> datetime:
    """A time as the driver returns it (in UTC, but without saying so)."""
    return time.replace(tzinfo=UTC)


def microseconds(time: datetime) -> int:
    """Microseconds since 1970: the write timestamp of a fact of that time."""
    return int(time.timestamp() * 1_000_000)


async def check_cassandra(session: Session | None) -> None:
    """Readiness check of Cassandra; ``session`` None: not connected yet."""
    if session is None:
        raise NotReady(NOT_OPEN)
    try:
        await session.ping()
    except CassandraUnavailableError as error:
        raise NotReady("Cassandra doesn't answer", str(error)) from None


def _cluster(settings: Settings, hosts: str) -> Cluster:
    endpoints = parse_addresses(hosts, default_port=9042)
    balancing = (
        DCAwareRoundRobinPolicy(local_dc=settings.cassandra_datacenter)
        if settings.cassandra_datacenter
        else RoundRobinPolicy()
    )
    password = settings.cassandra_password
    files = (settings.cassandra_cafile, settings.cassandra_certfile, settings.cassandra_keyfile)
    return Cluster(
        contact_points=endpoints,
        port=endpoints[0][1],
        auth_provider=PlainTextAuthProvider(settings.cassandra_username, password.get_secret_value())
        if settings.cassandra_username and password
        else None,
        execution_profiles={
            EXEC_PROFILE_DEFAULT: ExecutionProfile(
                load_balancing_policy=TokenAwarePolicy(balancing),
                consistency_level=ConsistencyLevel.LOCAL_QUORUM,
                request_timeout=REQUEST_TIMEOUT,
            )
        },
        reconnection_policy=RECONNECTION,
        connect_timeout=CONNECT_TIMEOUT,
        control_connection_timeout=CONNECT_TIMEOUT,
        protocol_version=PROTOCOL_VERSION,
        compression=False,
        ssl_context=tls_context("Cassandra", *files, CassandraUnavailableError) if settings.cassandra_tls else None,
    )


_seconds_of = cache(metrics.CASSANDRA_SECONDS.labels)


@cache
def name_of(cql: str) -> str:
    """Label of a statement in the metrics: its verb and table."""
    match = _VERB_AND_TABLE.match(cql)
    return f"{match[1]} {match[2]}".lower() if match else "other"


def _brief(error: Exception) -> str:
    if isinstance(error, NoHostAvailable):
        causes = {str(cause) for cause in error.errors.values()} if isinstance(error.errors, dict) else set()
        return "; ".join(sorted(causes)) or str(error.args[0] if error.args else error)
    return (str(error) or type(error).__name__).splitlines()[0]
