"""Sums over a bounded number of time intervals: when there are too many, their length doubles."""

from collections.abc import Iterator
from datetime import datetime
from typing import Generic, Protocol, Self, TypeVar


class Sums(Protocol):
    """A summable value. ``first``: the time of its first event."""

    first: datetime

    def add(self, other: Self) -> None:
        """Make this the sum of both."""


S = TypeVar("S", bound=Sums)


class Intervals(Generic[S]):
    """Sums over intervals of 1, 2, 4 … seconds: the shortest length that needs at most ``limit`` intervals."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seconds = 1
        self._sums: dict[int, S] = {}

    def __iter__(self) -> Iterator[S]:
        return iter(self._sums.values())

    def add(self, sums: S) -> None:
        """Add to the interval of ``sums.first``. May keep and mutate ``sums``."""
        self._put(sums)
        while len(self._sums) > self._limit:
            finer, self._sums = self._sums, {}
            self._seconds *= 2
            for each in finer.values():
                self._put(each)

    def _put(self, sums: S) -> None:
        number = int(sums.first.timestamp()) // self._seconds
        if number in self._sums:
            self._sums[number].add(sums)
        else:
            self._sums[number] = sums
