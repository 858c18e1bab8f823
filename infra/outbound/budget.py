"""Time budget of an outbound request."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

MAX_PAUSED = 300.0
"""Maximum time (s) of waiting that doesn't count: without it, redirects to slow name servers could go on for ever."""


class TimeBudget:
    """Deadline shared by all attempts and redirects of a request; waiting for our own resources does not count.

    Used by one task at a time.
    """

    def __init__(self, seconds: float) -> None:
        self._clock = asyncio.get_running_loop().time
        self._seconds = seconds
        self._deadline = self._clock() + seconds
        self._pauses_left = MAX_PAUSED
        self._scope: asyncio.Timeout | None = None

    @property
    def remaining(self) -> float:
        return self._deadline - self._clock()

    @property
    def spent(self) -> float:
        """Seconds that counted so far."""
        return self._seconds - self.remaining

    @asynccontextmanager
    async def enforced(self) -> AsyncIterator[None]:
        """Raise TimeoutError in the block once the budget is spent."""
        try:
            async with asyncio.timeout_at(self._deadline) as self._scope:
                yield
        finally:
            self._scope = None

    @contextmanager
    def paused(self, *, bounded: bool = True) -> Iterator[None]:
        """Stop the clock for the block; ``bounded``: for the rest of `MAX_PAUSED`."""
        since = self._clock()
        if self._scope is not None:
            self._scope.reschedule(None)
        try:
            yield
        finally:
            pause = self._clock() - since
            if bounded:
                pause = min(pause, self._pauses_left)
                self._pauses_left -= pause
            self._deadline += pause
            if self._scope is not None:
                self._scope.reschedule(self._deadline)
