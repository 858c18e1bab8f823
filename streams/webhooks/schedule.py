"""When to try again: pure rules from what came of an attempt."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

JITTER = 0.2
"""A pause is lengthened by up to this share of it, so that what failed together doesn't come back together."""

GONE = 410
"""The receiver wants no more messages (Standard Webhooks, "Deliverability and reliability")."""

OVERLOADED = frozenset({429, 502, 504})
"""Answers that ask to be gentler with the whole host (Standard Webhooks, the same place)."""


@dataclass(frozen=True)
class Outcome:
    """What came of one POST. ``reason`` None is success; ``hopeless``: no repeat can make it one."""

    status: int | None
    reason: str | None
    milliseconds: int
    retry_after: float | None = None
    hopeless: bool = False


class Schedule:
    """Seconds before each attempt but the first, counted from the end of the one before."""

    def __init__(self, pauses: Sequence[float], jitter: Callable[[], float] = random.random) -> None:
        self._pauses = tuple(pauses)
        self._jitter = jitter

    def next_attempt_at(self, tries: int, outcome: Outcome, now: datetime) -> datetime | None:
        """When to try again after ``tries`` attempts, of which the last one failed; None: not at all.

        A receiver's Retry-After makes the pause longer, never shorter (it is bounded where the header is read).
        """
        if outcome.hopeless or outcome.status == GONE or tries > len(self._pauses):
            return None
        pause = self._pauses[tries - 1] * (1 + JITTER * self._jitter())
        return now + timedelta(milliseconds=round(1000 * max(pause, outcome.retry_after or 0.0)))
