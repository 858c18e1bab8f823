"""Memory budget of in-flight downloads, shared fairly by owners."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from streams.compress.fair_slots import OWN_SHARE


class ByteBudget:
    """At most ``limit`` bytes are held at a time; only the oldest holding may exceed it.

    The size of a download is unknown when it begins, so a holding grows as bytes arrive, and waits while the budget
    is exhausted. The oldest holding never waits, which rules out a deadlock. An owner gets at most `OWN_SHARE` of the
    bytes that the others leave; the owner "" (no API keys) has no such bound.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._by_owner: Counter[str] = Counter()
        self._holdings: dict[Holding, None] = {}

    @contextmanager
    def holding(self, owner: str = "") -> Iterator["Holding"]:
        """An empty holding, released at the end of the block."""
        holding = Holding(self, owner)
        self._holdings[holding] = None
        try:
            yield holding
        finally:
            del self._holdings[holding]
            self._add(owner, -holding.bytes)
            if not self._by_owner[owner]:
                del self._by_owner[owner]
            for waiting in self._holdings:
                waiting.freed.set()

    def _add(self, owner: str, size: int) -> None:
        self.held += size
        self._by_owner[owner] += size

    def _fits(self, holding: "Holding", size: int) -> bool:
        if holding is next(iter(self._holdings)):
            return True
        own = self._by_owner[holding.owner]
        share = OWN_SHARE if holding.owner else 1.0
        return self.held + size <= self.limit and own + size <= share * (self.limit - self.held + own)


class Holding:
    """The bytes of one image."""

    def __init__(self, budget: ByteBudget, owner: str) -> None:
        self._budget = budget
        self.owner = owner
        self.bytes = 0
        self.freed = asyncio.Event()

    async def grow(self, size: int) -> None:
        """Wait until ``size`` more bytes fit, and hold them."""
        while not self._budget._fits(self, size):
            self.freed.clear()
            await self.freed.wait()
        self.bytes += size
        self._budget._add(self.owner, size)
