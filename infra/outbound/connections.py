"""Connections to hosts of users: the SSRF guard at the moment of connecting, TLS, and a pool of idle connections."""

import asyncio
import contextlib
import socket
import ssl
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_address
from itertools import chain

import structlog
from yarl import URL

from infra.outbound.addresses import Address, AllowList
from infra.outbound.budget import TimeBudget
from infra.outbound.names import Names
from infra.outbound.reasons import OutboundError, Reason, no_address

IDLE_SECONDS = 5.0

MAX_IDLE = 100

READ_BUFFER = 256 * 1024
"""Bytes per connection: a larger buffer fills up, and pauses its socket, less often."""

STEP = 64 * 1024
"""Most bytes of one `Connection.read`, so that parsing them doesn't hold up the event loop."""

MAX_SLOT_WAIT = 120.0
"""Timeout (s) of the wait for a connection slot of a host."""

NEXT_ADDRESS_AFTER = 0.25
"""Seconds after which the next address is tried as well (RFC 8305 §5, happy eyeballs)."""

Origin = tuple[str, str, int]  # scheme, host, port

logger = structlog.get_logger(__name__)


class Connection(asyncio.Protocol):
    """A byte stream with bounded buffering; ``transport`` is there once it is open."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.was_used = False
        self._arrived = deque[bytes]()
        self._size = 0
        self._ended = False
        self._error: Exception | None = None
        self._more = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._arrived.append(data)
        self._size += len(data)
        if self._size > READ_BUFFER:
            self.transport.pause_reading()
        self._more.set()

    def eof_received(self) -> None:
        self._ended = True
        self._more.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._error = exc
        self._more.set()

    @property
    def is_idle(self) -> bool:
        """Whether it can carry a request: open, and nothing came unasked."""
        return not (self._ended or self._arrived or self.transport.is_closing())

    async def read(self) -> bytes:
        """What arrived, at most STEP bytes; empty at the end. Raises OSError. Yields to the event loop."""
        if self._arrived or self._ended:
            await asyncio.sleep(0)
        while not self._arrived:
            if self._error is not None:
                raise self._error
            if self._ended:
                return b""
            self._more.clear()
            await self._more.wait()
        data = self._arrived.popleft()
        if len(data) > STEP:
            self._arrived.appendleft(data[STEP:])
            data = data[:STEP]
        if self._size > READ_BUFFER >= self._size - len(data):
            self.transport.resume_reading()
        self._size -= len(data)
        return data


class Connections:
    """Opens connections that the allow list permits, at most ``limit_per_host`` at a time, and keeps idle ones."""

    def __init__(
        self, allow: AllowList, names: Names, *, limit_per_host: int, tls: ssl.SSLContext, connect_timeout: float
    ) -> None:
        self._allow = allow
        self._names = names
        self._limit_per_host = limit_per_host
        self._tls = tls
        tls.set_alpn_protocols(["http/1.1"])
        self._connect_timeout = connect_timeout
        self._idle: dict[Origin, deque[tuple[Connection, asyncio.TimerHandle]]] = {}
        self._slots: dict[Origin, asyncio.Semaphore] = {}
        self._present: Counter[Origin] = Counter()  # those who hold a slot or wait for one

    @asynccontextmanager
    async def slot(self, target: URL, budget: TimeBudget) -> AsyncIterator[None]:
        """Hold one of the host's connections for the block; waiting for it doesn't count. Raises OutboundError."""
        origin = origin_of(target)
        slots = self._slots.setdefault(origin, asyncio.Semaphore(self._limit_per_host))
        self._present[origin] += 1
        try:
            try:
                with budget.paused():
                    async with asyncio.timeout(MAX_SLOT_WAIT):
                        await slots.acquire()
            except TimeoutError:
                detail = f"{target.raw_host} was busy with other downloads for too long"
                raise OutboundError(Reason.TIMEOUT, detail, retryable=True) from None
            try:
                yield
            finally:
                slots.release()
        finally:
            self._present[origin] -= 1
            if not self._present[origin]:
                del self._slots[origin], self._present[origin]

    async def open(self, target: URL, owner: str, budget: TimeBudget, *, fresh: bool) -> Connection:
        """An idle connection unless it must be ``fresh``, or a new one. Raises OutboundError."""
        idle = self._idle.get(origin_of(target))
        while idle and not fresh:
            connection, timer = idle.pop()
            timer.cancel()
            if connection.is_idle:
                return connection
            connection.transport.abort()
        host, port = target.raw_host or "", target.port or 0
        trusted = self._allow.has_name(host, port)
        addresses = [host] if _address(host) else await self._names.resolve(host, owner, budget)
        permitted = [address for text in addresses if (address := self._permitted(text, port, trusted))]
        if not permitted:
            logger.info("host resolves to forbidden addresses only", host=host)
            raise no_address(host)
        try:
            async with asyncio.timeout(self._connect_timeout):
                connected = await self._first_connected(permitted, port, trusted)
                return await self._start(connected, host if target.scheme == "https" else None)
        except TimeoutError:
            raise OutboundError(Reason.TIMEOUT, f"{host} accepted no connection in time", retryable=True) from None
        except ssl.SSLCertVerificationError:
            raise OutboundError(Reason.TLS_FAILED, f"{host} has no valid certificate") from None
        except ssl.SSLError:
            raise OutboundError(Reason.TLS_FAILED, f"{host} does not speak TLS as it should") from None
        except OSError:
            raise OutboundError(Reason.CONNECT_FAILED, f"cannot connect to {host}", retryable=True) from None

    def keep(self, target: URL, connection: Connection) -> None:
        """Keep a connection for the next request to the same origin."""
        if sum(map(len, self._idle.values())) >= MAX_IDLE:
            connection.transport.close()
            return
        connection.was_used = True
        timer = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._drop, origin_of(target), connection)
        self._idle.setdefault(origin_of(target), deque()).append((connection, timer))

    def close(self) -> None:
        for connection, timer in chain.from_iterable(self._idle.values()):
            timer.cancel()
            connection.transport.abort()
        self._idle.clear()

    def _drop(self, origin: Origin, connection: Connection) -> None:
        idle = deque(entry for entry in self._idle.pop(origin, ()) if entry[0] is not connection)
        if idle:
            self._idle[origin] = idle
        connection.transport.close()

    def _permitted(self, text: str, port: int, trusted: bool) -> Address | None:
        address = _address(text)
        return address if address and (trusted or self._allow.permits(address, port)) else None

    async def _first_connected(self, addresses: Sequence[Address], port: int, trusted: bool) -> socket.socket:
        """Connect to one of the addresses, trying the next one after a failure or a quarter of a second."""
        attempts = set[asyncio.Task[socket.socket]]()
        remaining = deque(addresses)
        failure: OSError | None = None
        try:
            while remaining or attempts:
                if remaining:
                    attempts.add(asyncio.create_task(self._connect(remaining.popleft(), port, trusted)))
                done, attempts = await asyncio.wait(
                    attempts,
                    timeout=NEXT_ADDRESS_AFTER if remaining else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for attempt in done:
                    try:
                        connected = attempt.result()
                    except OSError as error:
                        failure = error
                    else:
                        attempts |= done - {attempt}
                        return connected
            raise failure or OSError("no address")
        finally:
            for attempt in attempts:
                attempt.cancel()
                attempt.add_done_callback(_close_late)

    async def _connect(self, address: Address, port: int, trusted: bool) -> socket.socket:
        """The SSRF guard: nothing but this connects, and the socket gets the address that it checks."""
        if not self._permitted(str(address), port, trusted):
            raise PermissionError("the address is forbidden")
        family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
        connecting = socket.socket(family, socket.SOCK_STREAM)
        try:
            connecting.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connecting, (str(address), port))
        except BaseException:
            connecting.close()
            raise
        return connecting

    async def _start(self, connected: socket.socket, tls_host: str | None) -> Connection:
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                Connection,
                sock=connected,
                ssl=self._tls if tls_host else None,
                server_hostname=tls_host.removesuffix(".") if tls_host else None,
            )
        except BaseException:
            connected.close()
            raise
        return connection


def origin_of(target: URL) -> Origin:
    return target.scheme, target.raw_host or "", target.port or 0


def _address(text: str) -> Address | None:
    with contextlib.suppress(ValueError):
        return ip_address(text)
    return None


def _close_late(attempt: asyncio.Task[socket.socket]) -> None:
    """Close the socket of an attempt that succeeded after another one."""
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()
