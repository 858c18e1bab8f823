"""Fair shares among the owners of API keys, so that no tenant can take a whole process from the others."""

import asyncio
import math
import resource
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager

from aiohttp import web

from api.http.problems import Problem, ProblemCode, unavailable
from api.http.rate_limit import RateLimit
from infra.settings import Settings

SHARE = 4
"""An owner may have a quarter of each bound, and all of it as the only owner."""
SECONDS_PER_DAY = 86_400


def share_of(limit: int, settings: Settings) -> int:
    """One owner's share of a bound; at least 1, or 0 of 0."""
    return limit if len(settings.keys_by_owner) <= 1 else min(limit, max(1, limit // SHARE))


class ConcurrencyLimit:
    """Concurrent uses of a resource in this process: ``limit`` in all, ``share`` of them for each client.

    ``refusal`` makes the error response of the reason.
    """

    def __init__(self, limit: int, share: int, refusal: Callable[[str], Problem]) -> None:
        self._limit = limit
        self._share = share
        self._refusal = refusal
        self._taken: Counter[str] = Counter()

    @property
    def taken(self) -> int:
        return self._taken.total()

    @contextmanager
    def take(self, client: str) -> Iterator[None]:
        """Hold a slot; raises the refusal if none is free."""
        if self._taken[client] >= self._share < self._limit:
            raise self._refusal(f"the limit of {self._share} per client is reached")
        if self.taken >= self._limit:
            raise self._refusal(f"the limit of {self._limit} is reached")
        self._taken[client] += 1
        try:
            yield
        finally:
            self._taken[client] -= 1
            self._taken += Counter()  # drops clients without a slot


class Turns:
    """A semaphore of ``slots`` that owners take in turns; each may have ``share`` of them, and ``callers`` in all."""

    def __init__(self, slots: int, share: int, callers: ConcurrencyLimit) -> None:
        self._slots = asyncio.Semaphore(slots)
        self._share = share
        self._callers = callers
        self._owners: dict[str, tuple[asyncio.Semaphore, int]] = {}

    @asynccontextmanager
    async def turn(self, owner: str) -> AsyncIterator[None]:
        """Wait for a slot and hold it; raises the refusal of ``callers`` if too many wait."""
        with self._callers.take(owner), self._own_slots(owner) as own:
            async with own, self._slots:
                yield

    @contextmanager
    def _own_slots(self, owner: str) -> Iterator[asyncio.Semaphore]:
        own, users = self._owners.get(owner, (asyncio.Semaphore(self._share), 0))
        self._owners[owner] = own, users + 1
        try:
            yield own
        finally:
            own, users = self._owners.pop(owner)
            if users > 1:
                self._owners[owner] = own, users - 1


class DailyQuota:
    """Images and CSV bytes that an owner may add to the log, which is kept for ever, per day and process.

    Two token buckets that refill within a day: after a rest an owner may use a whole day's quota at once. An upload
    larger than that needs a full bucket. 0: unlimited.
    """

    def __init__(self, settings: Settings) -> None:
        self._buckets = tuple(
            (what, quota, RateLimit(quota / SECONDS_PER_DAY, quota))
            for what, quota in (("images", settings.max_images_per_day), ("bytes", settings.max_upload_bytes_per_day))
        )

    @contextmanager
    def spend(self, owner: str, images: int, size: int = 0) -> Iterator[None]:
        """Charge the images and bytes of the block, unless it fails; a 429 with Retry-After beyond the quota."""
        with ExitStack() as refunds:
            for (what, quota, bucket), amount in zip(self._buckets, (images, size), strict=True):
                if wait := math.ceil(bucket.take(owner, amount)):
                    raise Problem(
                        ProblemCode.QUOTA_EXCEEDED,
                        f"the quota of {quota:,} {what} per day is used up; retry after {wait} s",
                        headers={"Retry-After": str(wait)},
                    )
                refunds.callback(bucket.give_back, owner, amount)
            yield
            refunds.pop_all()


QUOTA = web.AppKey("daily_quota", DailyQuota)


MAX_CONNECTIONS = 20_000
RESERVED_FILES = 512
"""File descriptors for Kafka, Cassandra, the storage and spool files; at most half of all."""


def raise_file_limit() -> int:
    """Raise the soft limit of open files to the hard one; returns the new limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2**20 if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):  # macOS: kern.maxfilesperproc is lower than an unlimited hard limit
            return soft
        return wanted
    return wanted if soft == resource.RLIM_INFINITY else soft


def connection_limit(file_limit: int) -> ConcurrencyLimit:
    """The limit of the connections of one process; each address may have a quarter.

    Without it, idle connections could use up all file descriptors, and no request would be answered.
    """
    limit = min(file_limit - min(RESERVED_FILES, file_limit // 2), MAX_CONNECTIONS)
    return ConcurrencyLimit(
        limit, max(1, limit // SHARE), lambda reason: unavailable(f"too many connections: {reason}")
    )
