"""Tracks which partitions have folded everything that was on the log at their assignment."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Set
from typing import Generic, TypeVar

P = TypeVar("P")


class CatchUp(Generic[P]):
    """The partitions that have caught up; until then, the table may lack the consequences of old events.

    A retry of last week would be started again, as its ImagesRerequested is on another topic. ``P``: a topic partition.
    """

    def __init__(
        self,
        inputs: Callable[[int], list[P]],
        ends: Callable[[Iterable[P]], Awaitable[Mapping[P, int]]],
        position: Callable[[P], int | None],
    ) -> None:
        """``position``: offset of the first record that is not folded; None: of the first record there is."""
        self._inputs = inputs
        self._ends = ends
        self._position = position
        self._targets: dict[int, Mapping[P, int]] = {}
        self._caught_up: set[int] = set()

    async def among(self, assigned: Set[int]) -> set[int]:
        """The assigned partitions that have caught up since their assignment."""
        self._caught_up &= assigned  # one that was revoked and assigned again has had another owner
        self._targets = {number: target for number, target in self._targets.items() if number in assigned}
        for number in assigned - self._caught_up:
            if number not in self._targets:
                self._targets[number] = await self._ends(self._inputs(number))
            if all((self._position(tp) or 0) >= end for tp, end in self._targets[number].items()):
                self._caught_up.add(number)
                del self._targets[number]
        return set(self._caught_up)
