"""How many requests a client may make: a token bucket for each (https://en.wikipedia.org/wiki/Token_bucket)."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import IPv6Address, ip_address

from aiohttp import web

from api.problems import Problem

MAX_CLIENTS = 10_000
"""Clients remembered at once. Whoever is forgotten, the longest unseen first, begins anew with a full bucket."""

IPV6_NETWORK_BITS = 64
"""One customer of a provider has a whole /64 (RFC 6177), so its addresses share one bucket."""


@dataclass
class _Bucket:
    tokens: float
    at: float


class RateLimit:
    """Lets each client make ``burst`` requests at once and ``rate`` per second in the long run; ``rate`` 0: any."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, client: str) -> float:
        """Count one request. Returns 0, or the seconds until it may be made if it may not be made now."""
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
        """Count one request; raise a 429 that says when to come back if it is one too many."""
        wait = self.take(client)
        if wait:
            raise Problem(
                HTTPStatus.TOO_MANY_REQUESTS,
                "too-many-requests",
                f"more than {self._rate:g} requests per second: slow down",
                headers={"Retry-After": str(math.ceil(wait))},
            )


def address_of(request: web.Request) -> str:
    """Who a client without a key is."""
    if request.remote is None:
        return "unknown"
    address = ip_address(request.remote.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is None:
        return str(IPv6Address(int(address) >> (128 - IPV6_NETWORK_BITS) << (128 - IPV6_NETWORK_BITS)))
    return str(address)
