"""Fairness between receivers: how many POSTs may be under way, at one host and in all.

A receiver that doesn't answer holds what it has for 15 seconds. So that no number of those delays the others, a POST
begins in a prompt place and moves to a slow one when its answer is not there after a second, and a host that
was slow last time begins in a slow one. A host has few places at a time, and who waits for one waits in turn.
"""

import asyncio
import time

from streams.webhooks.schedule import OVERLOADED, Outcome

PROMPT_PLACES = 64
SLOW_PLACES = 512
PLACES_PER_HOST = 8
SLOW_AFTER = 1.0  # seconds

FIRST_REST = 1.0
"""Seconds that an overloaded host is left in peace; twice as long each further time, up to `LONGEST_REST`."""
LONGEST_REST = 60.0
LONGEST_ASKED_REST = 300.0
"""Seconds of a Retry-After that count for the host's other messages; a message's own pause counts all of it."""


class Host:
    """One receiver: its places, whether it was slow, and until when it is left in peace."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(PLACES_PER_HOST)
        self.users = 0
        self.slow = False
        self._rest = 0.0
        self._rest_until = 0.0

    @property
    def is_forgettable(self) -> bool:
        return self.users == 0 and time.monotonic() > self._rest_until + LONGEST_REST

    async def place(self) -> None:
        """Wait for a place, and until the host may be called."""
        await self._places.acquire()
        self.users += 1
        while (pause := self._rest_until - time.monotonic()) > 0:  # noqa: ASYNC110 - a time is waited for
            await asyncio.sleep(pause)

    def leave(self) -> None:
        self.users -= 1
        self._places.release()

    def learn(self, outcome: Outcome) -> None:
        self.slow = outcome.milliseconds > SLOW_AFTER * 1000
        if outcome.status in OVERLOADED:
            self._rest = min(2 * self._rest, LONGEST_REST) or FIRST_REST
            asked = min(outcome.retry_after or 0.0, LONGEST_ASKED_REST)
            self._rest_until = max(self._rest_until, time.monotonic() + max(self._rest, asked))
        elif outcome.reason is None:
            self._rest = 0.0


class Place:
    """One of the places that all hosts share."""

    def __init__(self, semaphore: asyncio.Semaphore) -> None:
        self._semaphore = semaphore

    def leave(self) -> None:
        self._semaphore.release()

    async def move_to(self, other: asyncio.Semaphore) -> None:
        """Change to another kind of place if one is free; else stay."""
        if self._semaphore is not other and not other.locked():
            await other.acquire()
            self._semaphore.release()
            self._semaphore = other


class Places:
    """The prompt and the slow places of one worker."""

    def __init__(self) -> None:
        self._prompt = asyncio.Semaphore(PROMPT_PLACES)
        self._slow = asyncio.Semaphore(SLOW_PLACES)

    async def take(self, host: Host) -> Place:
        semaphore = self._slow if host.slow else self._prompt
        await semaphore.acquire()
        return Place(semaphore)

    async def step_aside(self, place: Place) -> None:
        await place.move_to(self._slow)
