"""A bound on the bytes of images that are downloaded and not yet stored, whatever their number and size."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class ByteBudget:
    """At most ``limit`` bytes are held at a time, and those that the oldest holder has beyond it.

    The size of a download is not known when it begins, so a holding grows as bytes come, and waits where there are
    too many. All could wait for each other like that: the oldest never does, so it gets done, and then the next.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._holdings: dict[Holding, None] = {}

    @contextmanager
    def holding(self) -> Iterator["Holding"]:
        """Nothing at first; what it has grown to is given back at the end of the block."""
        holding = Holding(self)
        self._holdings[holding] = None
        try:
            yield holding
        finally:
            del self._holdings[holding]
            self.held -= holding.bytes
            for waiting in self._holdings:
                waiting.look_again.set()

    def is_oldest(self, holding: "Holding") -> bool:
        return next(iter(self._holdings)) is holding


class Holding:
    """The bytes of one image."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self.bytes = 0
        self.look_again = asyncio.Event()

    async def grow(self, size: int) -> None:
        """Hold ``size`` bytes more, as soon as they fit."""
        budget = self._budget
        while budget.held + size > budget.limit and not budget.is_oldest(self):
            self.look_again.clear()
            await self.look_again.wait()
        self.bytes += size
        budget.held += size
