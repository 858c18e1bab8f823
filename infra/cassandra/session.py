"""Cassandra from asyncio: the driver's futures are bridged, every call has a time-out and bounded retries."""

import asyncio
import random
import re
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
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

from infra import metrics
from infra.errors import ExplainedError
from infra.logs import silenced
from infra.readiness import NOT_OPEN, NotReady
from infra.settings import Settings, parse_addresses

T = TypeVar("T")

CONNECT_TIMEOUT = 10.0
REQUEST_TIMEOUT = 10.0
PAGE_SIZE = 5000
# For ever: the driver's own waits up to ten minutes between two attempts, and gives up after 64.
RECONNECTION = ExponentialReconnectionPolicy(1.0, 10.0, max_attempts=None)

BATCH = "batch"
_VERB_AND_TABLE = re.compile(r"\s*(\w+)\b.*?(?:\bFROM|\bINTO|(?<=UPDATE))\s+(\w+)", re.DOTALL | re.IGNORECASE)

# What may heal by itself. Everything else (wrong CQL, missing table) is a defect and must be seen.
_MAY_HEAL = (NoHostAvailable, OperationTimedOut, CoordinatorTimeout, Unavailable, TimeoutError)


class CassandraUnavailableError(ExplainedError):
    """Cassandra can't be reached or doesn't answer; the message names the hosts."""


class Session:
    """A connection to one keyspace. All statements are prepared once, by their text."""

    def __init__(self, cluster: Cluster, driver: DriverSession, hosts: str) -> None:
        self._cluster = cluster
        self._driver = driver
        self._hosts = hosts
        self._prepared: dict[str, PreparedStatement] = {}
        self._preparing = asyncio.Lock()

    @classmethod
    async def connect(cls, settings: Settings, *, keyspace: str | None = None) -> "Session":
        """Connect; ``keyspace`` None means that of the settings, an empty one none at all."""
        hosts = settings.cassandra_hosts
        if not hosts:
            raise CassandraUnavailableError(
                "SHRINKSTREAM_CASSANDRA_HOSTS is not set"
                " (only `shrinkstream up` and `demo` start a Cassandra of their own)"
            )
        cluster = _cluster(settings, hosts)
        wanted = settings.cassandra_keyspace if keyspace is None else keyspace
        try:
            with silenced("cassandra.cluster"):
                driver = await asyncio.to_thread(cluster.connect, wanted or None)
        except (DriverException, NoHostAvailable, OSError, ValueError) as error:
            await asyncio.to_thread(cluster.shutdown)
            raise CassandraUnavailableError(f"Cassandra can't be used at {hosts}: {_brief(error)}") from None
        return cls(cluster, driver, hosts)

    async def close(self) -> None:
        await asyncio.to_thread(self._cluster.shutdown)

    async def execute(self, cql: str, parameters: Sequence[Any] = (), *, patience: float = 0) -> list[Any]:
        """Run a statement and return all its rows, which the caller knows to be few.

        A fault that may heal is tried again, with growing pauses, until ``patience`` seconds have passed:
        every statement of this system may be repeated. Then it is a CassandraUnavailableError.
        """
        rows: list[Any] = []
        async for page in self.pages(cql, parameters, page_size=PAGE_SIZE, patience=patience):
            rows += page
        return rows

    async def pages(
        self, cql: str, parameters: Sequence[Any] = (), *, page_size: int, patience: float = 0
    ) -> AsyncIterator[list[Any]]:
        """Run a query and yield its rows, up to ``page_size`` at a time; the next are fetched when they are asked for.

        ``patience`` is that of each page, as in ``execute``.
        """
        state: bytes | None = None
        name = name_of(cql)

        async def fetch() -> tuple[list[Any], bytes | None]:
            statement = (await self._prepare(cql)).bind(parameters)
            statement.fetch_size = page_size
            return await self._run(statement, name, state)

        while True:
            rows, state = await self._until_it_heals(fetch, patience)
            yield rows
            if state is None:
                return

    async def write_together(self, writes: Sequence[tuple[str, Sequence[Any]]], *, patience: float = 0) -> None:
        """Run several writes as one unlogged batch, which costs little more than one of them; else as ``execute``.

        Some may be made and others not when it fails: each must stand by itself.
        """

        async def write() -> None:
            batch = BatchStatement(BatchType.UNLOGGED)
            batch.is_idempotent = True
            for cql, parameters in writes:
                batch.add(await self._prepare(cql), parameters)
            await self._run(batch, BATCH)

        await self._until_it_heals(write, patience)

    async def _until_it_heals(self, run: Callable[[], Awaitable[T]], patience: float) -> T:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        pause = 0.1
        while True:
            try:
                return await run()
            except _MAY_HEAL as error:
                if loop.time() + pause > deadline:
                    raise CassandraUnavailableError(
                        f"Cassandra at {self._hosts} doesn't answer: {_brief(error)}"
                    ) from error
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - jitter, no secret
            pause = min(pause * 2, 5)

    async def execute_script(self, cql: str) -> None:
        """Run one statement as it is, such as a schema change."""
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
        """Return when as many replicas have answered as a read takes. Raises CassandraUnavailableError.

        The caller bounds the wait: nothing is prepared for it, which would keep a thread busy.
        """
        statement = SimpleStatement("SELECT number FROM schema_migrations LIMIT 1", is_idempotent=True)
        try:
            await self._run(statement, name_of(statement.query_string))
        except _MAY_HEAL as error:
            raise CassandraUnavailableError(f"Cassandra at {self._hosts} doesn't answer: {_brief(error)}") from None

    async def _run(self, statement: Statement, name: str, state: bytes | None = None) -> tuple[list[Any], bytes | None]:
        """One page, and where the next one begins (None: there is none)."""
        started = time.perf_counter()
        metrics.CASSANDRA_IN_FLIGHT.inc()
        try:
            return await self._answer(statement, state)
        except BaseException as error:
            metrics.CASSANDRA_ERRORS.labels(name, type(error).__name__).inc()
            raise
        finally:
            metrics.CASSANDRA_IN_FLIGHT.dec()
            _seconds_of(name).observe(time.perf_counter() - started)

    async def _answer(self, statement: Statement, state: bytes | None) -> tuple[list[Any], bytes | None]:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[list[Any]] = loop.create_future()

        def succeed(rows: list[Any] | None) -> None:
            if not done.done():
                done.set_result(rows or [])

        def fail(error: Exception) -> None:
            if not done.done():
                done.set_exception(error)

        future: ResponseFuture = self._driver.execute_async(statement, timeout=REQUEST_TIMEOUT, paging_state=state)
        # The driver calls back from its own thread.
        future.add_callbacks(
            lambda rows: loop.call_soon_threadsafe(succeed, rows),
            lambda error: loop.call_soon_threadsafe(fail, error),
        )
        rows = await asyncio.wait_for(done, REQUEST_TIMEOUT + 5)
        return rows, ResultSet(future, rows).paging_state


async def ask_cassandra(session: Session | None) -> None:
    """The question whether as many replicas answer as it takes; None: there is no connection yet."""
    if session is None:
        raise NotReady(NOT_OPEN)
    try:
        await session.ping()
    except CassandraUnavailableError as error:
        raise NotReady("it doesn't answer", str(error)) from None


def _cluster(settings: Settings, hosts: str) -> Cluster:
    endpoints = parse_addresses(hosts, default_port=9042)
    balancing = (
        DCAwareRoundRobinPolicy(local_dc=settings.cassandra_datacenter)
        if settings.cassandra_datacenter
        else RoundRobinPolicy()
    )
    password = settings.cassandra_password
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
        protocol_version=5,
        compression=False,
        ssl_context=_tls_context(settings),
    )


_seconds_of = cache(metrics.CASSANDRA_SECONDS.labels)


@cache
def name_of(cql: str) -> str:
    """What a statement is called in the metrics: what it does, to which table."""
    match = _VERB_AND_TABLE.match(cql)
    return f"{match[1]} {match[2]}".lower() if match else "other"


def _tls_context(settings: Settings) -> ssl.SSLContext | None:
    if not settings.cassandra_tls:
        return None
    try:
        context = ssl.create_default_context(cafile=settings.cassandra_cafile)
        if settings.cassandra_certfile:
            context.load_cert_chain(settings.cassandra_certfile, settings.cassandra_keyfile)
    except (OSError, ssl.SSLError) as error:
        raise CassandraUnavailableError(f"the certificates for Cassandra can't be used: {error}") from None
    return context


def _brief(error: Exception) -> str:
    if isinstance(error, NoHostAvailable):
        causes = {str(cause) for cause in error.errors.values()} if isinstance(error.errors, dict) else set()
        return "; ".join(sorted(causes)) or str(error.args[0] if error.args else error)
    return (str(error) or type(error).__name__).splitlines()[0]
