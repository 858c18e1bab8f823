"""The download of one image by the guarded client, with retries."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import count

from infra.outbound.budget import TimeBudget
from infra.outbound.client import Admit, OutboundClient
from infra.outbound.reasons import ForbiddenUrl, OutboundError

EMPTY = "fetch_empty"

FIRST_PAUSE = 0.5
MAX_PAUSE = 8.0


class FetchFailed(Exception):
    """The download failed: ``reason`` is a stable code, ``detail`` explains it to people.

    ``transient``: the same request may succeed later.
    """

    def __init__(self, reason: str, detail: str, *, transient: bool = False) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = str(reason)
        self.detail = detail
        self.transient = transient


@dataclass(frozen=True)
class Fetched:
    """A downloaded body, never empty, and how long it took, pauses between attempts included."""

    body: bytes
    milliseconds: int


def host_of(url: str, client: OutboundClient) -> str:
    """``name:port`` of a URL, whose downloads share a limit; "" if the URL is forbidden."""
    try:
        target = client.check_url(url)
    except ForbiddenUrl:
        return ""
    return f"{target.raw_host}:{target.port}"


async def fetch(
    client: OutboundClient,
    url: str,
    *,
    max_bytes: int,
    timeout: float,
    owner: str = "",
    attempts: int = 3,
    admit: Admit | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    jitter: Callable[[], float] = random.random,
) -> Fetched:
    """Download ``url``, at most ``max_bytes``, in up to ``attempts`` attempts. Raises FetchFailed.

    The attempts and the pauses between them share ``timeout`` seconds. Waiting for a DNS look-up to start or for memory
    doesn't count: our own queues must not use up the time that a slow host needs. Names are looked up on behalf of
    ``owner``. ``admit`` is that of `OutboundClient.get`.
    """
    try:
        host = client.check_url(url).raw_host or ""
    except ForbiddenUrl as error:
        raise FetchFailed(error.reason, error.detail) from None
    budget = TimeBudget(timeout)
    for attempt in count(1):
        try:
            response = await client.get(url, max_bytes=max_bytes, budget=budget, owner=owner, admit=admit)
            break
        except OutboundError as error:
            pause = pause_after(attempt, error.retry_after, jitter())
            if not error.retryable or attempt >= attempts or pause >= budget.remaining:
                raise FetchFailed(error.reason, error.detail, transient=error.retryable) from None
        await sleep(pause)
    if not response.body:
        raise FetchFailed(EMPTY, f"{host} sent nothing (status {response.status})")
    return Fetched(response.body, round(budget.spent * 1000))


def pause_after(attempt: int, retry_after: float | None, jitter: float) -> float:
    """Seconds to wait after the ``attempt``-th failure (from 1); ``jitter`` is random in [0, 1).

    Exponential with full jitter (AWS Architecture Blog, "Exponential Backoff And Jitter", 2015), added to the
    server's Retry-After, so that clients with the same Retry-After don't return at once.
    """
    return (retry_after or 0.0) + jitter * min(MAX_PAUSE, FIRST_PAUSE * 2.0 ** (attempt - 1))
