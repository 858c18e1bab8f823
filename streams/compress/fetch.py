"""The download of one image: guarded by `infra.outbound.client`, repeated where that may help, gentle to hosts."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count

from infra.outbound.budget import TimeBudget
from infra.outbound.client import Admit, OutboundClient
from infra.outbound.reasons import ForbiddenUrl, OutboundError, Reason
from infra.outbound.urls import check_url

EMPTY = "fetch_empty"

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 8.0


class FetchFailed(Exception):
    """There is no image to be had: ``reason`` is a stable code, ``detail`` says the same for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = str(reason)
        self.detail = detail


@dataclass(frozen=True)
class Fetched:
    """A downloaded body, never empty, and how long it took, pauses between attempts included."""

    body: bytes
    milliseconds: int


@dataclass
class _Queue:
    slots: asyncio.Semaphore
    present: int = 0


class HostTurns:
    """At most ``limit`` downloads from a host at a time, first come first served.

    Remembers a host only while something is being downloaded from it or waits for that.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._queues: dict[str, _Queue] = {}

    def __len__(self) -> int:
        return len(self._queues)

    @asynccontextmanager
    async def turn(self, host: str, timeout: float) -> AsyncIterator[None]:
        """Hold a turn at ``host`` for the block; everybody gives it back within ``timeout`` seconds.

        Raises FetchFailed if none comes in the time that all who were there before may take, and one ``timeout`` more.
        """
        queue = self._queues.setdefault(host, _Queue(asyncio.Semaphore(self._limit)))
        longest = timeout * (queue.present // self._limit + 1)
        queue.present += 1
        try:
            try:
                async with asyncio.timeout(longest):
                    await queue.slots.acquire()
            except TimeoutError:
                raise FetchFailed(Reason.TIMEOUT, f"{host} was busy with other downloads for too long") from None
            try:
                yield
            finally:
                queue.slots.release()
        finally:
            queue.present -= 1
            if not queue.present:
                del self._queues[host]


async def fetch(
    client: OutboundClient,
    url: str,
    *,
    max_bytes: int,
    timeout: float,
    owner: str = "",
    attempts: int = 3,
    turns: HostTurns,
    admit: Admit | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    jitter: Callable[[], float] = random.random,
) -> Fetched:
    """Download ``url``, at most ``max_bytes``, in up to ``attempts`` attempts. Raises FetchFailed.

    The attempts and the pauses between them share ``timeout`` seconds. Waiting for a turn at the host, for a DNS
    look-up to start or for memory doesn't count: a queue of our own making must not eat up the time that a slow host
    needs, nor fail an image that was never requested. ``owner`` is on whose behalf names are looked up. A turn is kept
    during the pauses, which slows us down at a host in trouble. ``admit`` is that of `OutboundClient.get`.
    """
    try:
        host = check_url(url, client.allow).raw_host or ""
    except ForbiddenUrl as error:
        raise FetchFailed(error.reason, error.detail) from None
    async with turns.turn(host, timeout):
        budget = TimeBudget(timeout)
        for attempt in count(1):
            try:
                response = await client.get(url, max_bytes=max_bytes, budget=budget, owner=owner, admit=admit)
                break
            except OutboundError as error:
                pause = pause_after(attempt, error.retry_after, jitter())
                if not error.retryable or attempt >= attempts or pause >= budget.remaining:
                    raise FetchFailed(error.reason, error.detail) from None
            await sleep(pause)
    if not response.body:
        raise FetchFailed(EMPTY, f"{host} sent nothing (status {response.status})")
    return Fetched(response.body, round(budget.spent * 1000))


def pause_after(attempt: int, retry_after: float | None, jitter: float) -> float:
    """Seconds to wait after the ``attempt``-th failure (from 1); ``jitter`` is random in [0, 1).

    Exponential with full jitter (AWS Architecture Blog, "Exponential Backoff And Jitter", 2015), on top of
    what the server asked for, so that all who were told the same moment don't return at the same moment.
    """
    return (retry_after or 0.0) + jitter * min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (attempt - 1))
