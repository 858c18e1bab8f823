"""DNS look-ups that a slow name server can't starve: bounded in time, shared fairly, cached for seconds.

The system's resolver blocks a thread and can't be cancelled: a name server that never answers holds it for half a
minute. So each look-up has its own thread, an owner and a zone have few at a time, and the wait for a thread doesn't
count as time of the download.
"""

import asyncio
import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from infra.outbound.budget import TimeBudget
from infra.outbound.reasons import OutboundError, Reason, no_address

LOOK_UP_TIMEOUT = 10.0
"""Seconds for an answer. The system's resolver asks each name server twice, 5 seconds each (resolv.conf(5))."""

MAX_WAIT = 60.0
"""Seconds to wait for a thread: longer than any look-up holds one."""

THREADS = 256
THREADS_PER_OWNER = 128
THREADS_PER_ZONE = 8
"""Of one owner: other owners' look-ups in the zone don't wait for them."""

# One DNS answer may hold thousands.
MAX_ADDRESSES = 8

MAX_CACHED = 1000

_PUBLIC_SECOND_LEVEL = frozenset({"ac", "co", "com", "edu", "gov", "net", "org"})

LookUp = Callable[[str], Sequence[str]]


def system_look_up(host: str) -> Sequence[str]:
    """The addresses of a name, as text. Blocks. Raises OSError (socket.gaierror) or UnicodeError."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return [str(sockaddr[0]) for *_, sockaddr in found]


def zone_of(host: str) -> str:
    """The domain under a public suffix, by rule of thumb: what one operator's name servers answer for."""
    labels = host.removesuffix(".").split(".")
    in_country = len(labels) > 2 and len(labels[-1]) == 2 and labels[-2] in _PUBLIC_SECOND_LEVEL
    return ".".join(labels[-3 if in_country else -2 :])


@dataclass(eq=False)
class _LookUp:
    owner: str
    host: str
    started: asyncio.Event = field(default_factory=asyncio.Event)
    result: asyncio.Future[Sequence[str]] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    askers: int = 0

    @property
    def zone(self) -> tuple[str, str]:
        return self.owner, zone_of(self.host)


class Names:
    """The resolver of one event loop."""

    def __init__(self, look_up: LookUp = system_look_up, cache_seconds: float = 10.0) -> None:
        self._look_up = look_up
        self._cache_seconds = cache_seconds
        self._cache: dict[str, tuple[float, Sequence[str]]] = {}
        self._under_way: dict[tuple[str, str], _LookUp] = {}
        self._queue: list[_LookUp] = []
        self._running: Counter[str | tuple[str, str] | None] = Counter()

    async def resolve(self, host: str, owner: str, budget: TimeBudget) -> Sequence[str]:
        """At most 8 addresses of ``host``, as text. Raises OutboundError (DNS_FAILED).

        ``owner`` is on whose behalf it is looked up; ``budget`` is paused while no thread is free.
        """
        loop = asyncio.get_running_loop()
        expires, addresses = self._cache.get(host, (0.0, ()))
        if loop.time() < expires:
            return addresses
        look_up = self._under_way.get((owner, host))
        if look_up is None:
            look_up = self._under_way[owner, host] = _LookUp(owner, host)
            self._queue.append(look_up)
            self._start_due()
        look_up.askers += 1
        try:
            try:
                with budget.paused():
                    async with asyncio.timeout(MAX_WAIT):
                        await look_up.started.wait()
                async with asyncio.timeout(LOOK_UP_TIMEOUT):
                    return await asyncio.shield(look_up.result)
            except TimeoutError:
                raise OutboundError(
                    Reason.DNS_FAILED, f"the name servers of {host} don't answer in time", retryable=True
                ) from None
            except (OSError, UnicodeError) as error:
                if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
                    raise OutboundError(Reason.DNS_FAILED, f"{host} can't be resolved now", retryable=True) from None
                raise no_address(host) from None
        finally:
            look_up.askers -= 1
            if not look_up.askers and look_up in self._queue:
                self._queue.remove(look_up)
                del self._under_way[owner, host]

    def _start_due(self) -> None:
        for look_up in list(self._queue):
            if (
                self._running[None] < THREADS
                and self._running[look_up.owner] < THREADS_PER_OWNER
                and self._running[look_up.zone] < THREADS_PER_ZONE
            ):
                self._queue.remove(look_up)
                self._running.update((None, look_up.owner, look_up.zone))
                look_up.started.set()
                work = threading.Thread(target=self._run, args=(look_up, asyncio.get_running_loop()), daemon=True)
                work.start()  # a daemon: the process doesn't wait for it at its end

    def _run(self, look_up: _LookUp, loop: asyncio.AbstractEventLoop) -> None:
        result: Sequence[str] | Exception
        try:
            result = self._look_up(look_up.host)[:MAX_ADDRESSES]
        except Exception as error:  # noqa: BLE001 - raised in those who asked
            result = error
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(self._finish, look_up, result)

    def _finish(self, look_up: _LookUp, result: Sequence[str] | Exception) -> None:
        del self._under_way[look_up.owner, look_up.host]
        self._running.subtract((None, look_up.owner, look_up.zone))
        self._running = +self._running  # forgets those at zero
        if isinstance(result, Exception):
            look_up.result.set_exception(result)
            look_up.result.exception()  # retrieved: there may be no waiting caller any more
        else:
            look_up.result.set_result(result)
            if len(self._cache) >= MAX_CACHED:
                del self._cache[next(iter(self._cache))]
            self._cache[look_up.host] = (asyncio.get_running_loop().time() + self._cache_seconds, result)
        self._start_due()
