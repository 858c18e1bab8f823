"""Backoff of delivery attempts: pure rules on the result of an attempt."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

JITTER = 0.2
"""Jitter: largest extension of a backoff, as a share of it, so that attempts that failed together are spread."""

GONE = 410
"""The receiver wants no more messages (Standard Webhooks, "Deliverability and reliability")."""

OVERLOADED = frozenset({429, 502, 504})
"""Statuses after which the whole host gets a backoff (Standard Webhooks, the same section)."""


@dataclass(frozen=True)
class Outcome:
    """Result of one POST. ``reason`` None is success; ``hopeless``: no retry can succeed."""

    status: int | None
    reason: str | None
    milliseconds: int
    retry_after: float | None = None
    hopeless: bool = False


class Schedule:
    """Backoff in seconds before each attempt but the first, from the end of the previous one."""

    def __init__(self, backoffs: Sequence[float], jitter: Callable[[], float] = random.random) -> None:
        self._backoffs = tuple(backoffs)
        self._jitter = jitter

    def next_attempt_at(self, tries: int, outcome: Outcome, now: datetime) -> datetime | None:
        """Time of the next attempt after ``tries`` attempts, the last of which failed; None: there is none.

        A receiver's Retry-After extends the backoff, never shortens it (it is bounded where the header is read).
        """
        if outcome.hopeless or outcome.status == GONE or tries > len(self._backoffs):
            return None
        backoff = self._backoffs[tries - 1] * (1 + JITTER * self._jitter())
        return now + timedelta(milliseconds=round(1000 * max(backoff, outcome.retry_after or 0.0)))
