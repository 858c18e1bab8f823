"""Sums over intervals of time whose number is bounded, however long it all lasts."""

from collections.abc import Iterator
from datetime import datetime
from typing import Generic, Protocol, Self, TypeVar


class Sums(Protocol):
    """Something that can be added up. ``first``: when it begins."""

    first: datetime

    def add(self, other: Self) -> None:
        """Make this the sum of both."""


S = TypeVar("S", bound=Sums)


class Intervals(Generic[S]):
    """Sums over intervals of a second, of two, of four …: the shortest that are ``most`` at most."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._seconds = 1
        self._sums: dict[int, S] = {}

    def __iter__(self) -> Iterator[S]:
        return iter(self._sums.values())

    def add(self, sums: S) -> None:
        """Add to the interval in which ``sums`` begins, and keep it, where it is the first there."""
        self._put(sums)
        while len(self._sums) > self._most:
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
