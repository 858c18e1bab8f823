"""Index of the requests by owner, ordered by creation."""

from bisect import bisect_left
from collections.abc import Iterator
from datetime import datetime

Cursor = tuple[datetime, str]
"""Creation and id of a request: its position in a list of requests."""


class RequestsByOwner:
    """The requests of each owner in the order of their creation. Adding them in that order is cheapest."""

    def __init__(self) -> None:
        self._cursors: dict[str, list[Cursor]] = {}

    def add(self, owner: str, created_at: datetime, request_id: str) -> None:
        """Add a request; a request that is in the index is not added again."""
        cursors, cursor = self._cursors.setdefault(owner, []), (created_at, request_id)
        found = bisect_left(cursors, cursor)
        if cursors[found : found + 1] != [cursor]:
            cursors.insert(found, cursor)

    def discard(self, owner: str, created_at: datetime, request_id: str) -> None:
        """Remove a request, if it is in the index."""
        cursors, cursor = self._cursors.get(owner, []), (created_at, request_id)
        found = bisect_left(cursors, cursor)
        if cursors[found : found + 1] == [cursor]:
            del cursors[found]
            if not cursors:
                del self._cursors[owner]

    def newest_first(self, owner: str, before: Cursor | None) -> Iterator[Cursor]:
        """The requests of an owner, newest first; ``before``: only those that come after it in this order."""
        cursors = self._cursors.get(owner, [])
        end = len(cursors) if before is None else bisect_left(cursors, before)
        for number in range(end - 1, -1, -1):
            yield cursors[number]
