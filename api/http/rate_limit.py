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

    def take(self, client: str) -> float:
        """Take one token. Returns 0, or the seconds until a token is available."""
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
        if bucket.tokens < 1:
            return (1 - bucket.tokens) / self._rate
        bucket.tokens -= 1
        return 0.0

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
    if request.remote is None:
        return "unknown"
    address = ip_address(request.remote.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is None:
        return str(IPv6Address(int(address) >> (128 - IPV6_NETWORK_BITS) << (128 - IPV6_NETWORK_BITS)))
    return str(address)
