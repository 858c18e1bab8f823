"""Rate limiter: a token bucket per client (https://en.wikipedia.org/wiki/Token_bucket)."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

from aiohttp import web

from api.http.problems import Problem, ProblemCode

MAX_CLIENTS = 10_000
"""Maximum buckets. The least recently used bucket is evicted; its client starts again with a full one."""

IPV6_NETWORK_BITS = 64
"""A provider assigns at least a /64 to each customer (RFC 6177), so its addresses share one bucket."""


@dataclass
class _Bucket:
    tokens: float
    at: float


class RateLimit:
    """Allows each client a burst of ``burst`` requests and a sustained ``rate`` per second; ``rate`` 0: unlimited."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, client: str, amount: float = 1) -> float:
        """Take tokens. Returns 0, or the seconds until they are available.

        More than ``burst`` are available in a full bucket, which then owes the rest.
        """
        if not self._rate:
            return 0.0
        now = self._clock()
        bucket = self._buckets.get(client)
        if bucket is None:
            bucket = self._buckets[client] = _Bucket(self._burst, now)
            if len(self._buckets) > MAX_CLIENTS:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(client)
        bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.at) * self._rate)
        bucket.at = now
        needed = min(amount, self._burst)
        if bucket.tokens < needed:
            return (needed - bucket.tokens) / self._rate
        bucket.tokens -= amount
        return 0.0

    def give_back(self, client: str, amount: float) -> None:
        """Return tokens that were taken but not used."""
        if (bucket := self._buckets.get(client)) is not None:
            bucket.tokens += amount  # the next take cuts off more than a burst

    def require(self, client: str) -> None:
        """Take one token, or raise a 429 with Retry-After."""
        wait = self.take(client)
        if wait:
            raise Problem(
                ProblemCode.TOO_MANY_REQUESTS,
                f"rate limit of {self._rate:g} requests per second exceeded; retry after {math.ceil(wait)} s",
                headers={"Retry-After": str(math.ceil(wait))},
            )


def address_of(request: web.Request) -> str:
    """The identity of a client without a key: its IPv4 address or IPv6 network."""
    return network_of(request.remote)


def network_of(remote: str | None) -> str:
    """The IPv4 address or IPv6 network of a peer's address."""
    if remote is None:
        return "unknown"
    address = ip_address(remote.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is None:
        return str(IPv6Address(int(address) >> (128 - IPV6_NETWORK_BITS) << (128 - IPV6_NETWORK_BITS)))
    return str(address)
