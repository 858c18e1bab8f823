"""Sweep over the hints: finds slots that are missing in the list of slots, whose hints would be lost."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from streams.webhooks.store import Deliveries, HintedSlot

logger = structlog.get_logger(__name__)

SLOTS = 1000
"""Partitions of hints per call."""
LONGEST_BACKOFF = 3600.0


class Sweep:
    """Some slots with hints at each call, round and round; exponential backoff (s) after an error."""

    def __init__(self, deliveries: Deliveries, backoff: float) -> None:
        self._deliveries = deliveries
        self._last: HintedSlot | None = None
        self._first_backoff = self._backoff = backoff
        self._resumes_at = 0.0

    async def run(self, list_slot: Callable[[HintedSlot], Awaitable[None]]) -> None:
        """Call ``list_slot`` for each of the next slots."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._resumes_at:
            return
        try:
            found = await self._deliveries.hinted_slots(self._last, SLOTS)
            self._last = found[-1] if len(found) == SLOTS else None
            for slot in found:
                await list_slot(slot)
        except Exception:  # such as too many tombstones: must not keep the worker from sending
            logger.exception("sweeping webhook slots failed", backoff=self._backoff)
            self._resumes_at = loop.time() + self._backoff
            self._backoff = min(2 * self._backoff, LONGEST_BACKOFF)
        else:
            self._backoff = self._first_backoff
