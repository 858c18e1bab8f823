"""Fairness between receivers: limits of concurrent POSTs, per host and in all.

A receiver that doesn't respond holds its permits for 15 seconds. So that such receivers don't delay the others, a POST
starts with a prompt permit and changes it for a slow one after a second without a response; a host that was slow
last time starts with a slow one. A host has few permits, granted in order of arrival.
"""

import asyncio
import time

from streams.webhooks.schedule import OVERLOADED, Outcome

PROMPT_PERMITS = 64
SLOW_PERMITS = 512
PERMITS_PER_HOST = 8
SLOW_AFTER = 1.0  # seconds

FIRST_BACKOFF = 1.0
"""Backoff (s) of an overloaded host, doubled each further time up to `MAX_BACKOFF`."""
MAX_BACKOFF = 60.0
MAX_RETRY_AFTER = 300.0
"""Limit (s) of a Retry-After for the host's other messages; the backoff of the message itself counts all of it."""


class Host:
    """One receiver: its permits, whether it was slow, and the end of its backoff."""

    def __init__(self) -> None:
        self._permits = asyncio.Semaphore(PERMITS_PER_HOST)
        self.users = 0
        self.slow = False
        self._backoff = 0.0
        self._backoff_until = 0.0

    @property
    def is_forgettable(self) -> bool:
        return self.users == 0 and time.monotonic() > self._backoff_until + MAX_BACKOFF

    async def acquire(self) -> None:
        """Wait for a permit and for the end of the backoff."""
        await self._permits.acquire()
        self.users += 1
        while (pause := self._backoff_until - time.monotonic()) > 0:  # noqa: ASYNC110 - a time is waited for
            await asyncio.sleep(pause)

    def release(self) -> None:
        self.users -= 1
        self._permits.release()

    def learn(self, outcome: Outcome) -> None:
        self.slow = outcome.milliseconds > SLOW_AFTER * 1000
        if outcome.status in OVERLOADED:
            self._backoff = min(2 * self._backoff, MAX_BACKOFF) or FIRST_BACKOFF
            asked = min(outcome.retry_after or 0.0, MAX_RETRY_AFTER)
            self._backoff_until = max(self._backoff_until, time.monotonic() + max(self._backoff, asked))
        elif outcome.reason is None:
            self._backoff = 0.0


class Permit:
    """A permit of those that all hosts share."""

    def __init__(self, semaphore: asyncio.Semaphore) -> None:
        self._semaphore = semaphore

    def release(self) -> None:
        self._semaphore.release()

    async def move_to(self, other: asyncio.Semaphore) -> None:
        """Change it for one of another kind if one is free."""
        if self._semaphore is not other and not other.locked():
            await other.acquire()
            self._semaphore.release()
            self._semaphore = other


class Permits:
    """The prompt and the slow permits of one worker."""

    def __init__(self) -> None:
        self._prompt = asyncio.Semaphore(PROMPT_PERMITS)
        self._slow = asyncio.Semaphore(SLOW_PERMITS)

    async def acquire(self, host: Host) -> Permit:
        semaphore = self._slow if host.slow else self._prompt
        await semaphore.acquire()
        return Permit(semaphore)

    async def move_to_slow(self, permit: Permit) -> None:
        await permit.move_to(self._slow)
