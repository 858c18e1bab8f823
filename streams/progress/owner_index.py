"""Whose requests there are, by age."""

from bisect import bisect_left
from collections.abc import Iterator
from datetime import datetime

Place = tuple[datetime, str]
"""When a request was created, and its id: its place in a list of requests."""


class RequestsByOwner:
    """The requests of each owner in the order of their creation. Most come in that order, which costs least."""

    def __init__(self) -> None:
        self._places: dict[str, list[Place]] = {}

    def add(self, owner: str, created_at: datetime, request_id: str) -> None:
        """Put a request in; one that is there already stays there once."""
        places, place = self._places.setdefault(owner, []), (created_at, request_id)
        found = bisect_left(places, place)
        if places[found : found + 1] != [place]:
            places.insert(found, place)

    def discard(self, owner: str, created_at: datetime, request_id: str) -> None:
        """Take a request out, if it is there."""
        places, place = self._places.get(owner, []), (created_at, request_id)
        found = bisect_left(places, place)
        if places[found : found + 1] == [place]:
            del places[found]
            if not places:
                del self._places[owner]

    def newest_first(self, owner: str, before: Place | None) -> Iterator[Place]:
        """The requests of an owner, newest first; ``before``: only those that come after it in this order."""
        places = self._places.get(owner, [])
        end = len(places) if before is None else bisect_left(places, before)
        for number in range(end - 1, -1, -1):
            yield places[number]
