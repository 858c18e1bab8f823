"""The queue of a host's hints in a shard, in slots of ten minutes: due times and cursors. Pure.

Memory has a cursor and a due time for each slot; the hints are read from Cassandra, a page at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from streams.webhooks.store import Hint

PAGE = 50
NEVER = datetime(9999, 1, 1, tzinfo=UTC)

Cursor = tuple[datetime, str]
"""Due time and webhook id of the last hint that was read."""
START: Cursor = (datetime(1970, 1, 1, tzinfo=UTC), "")


@dataclass
class Slot:
    """A partition of hints: the cursor of the last reading, and the due time of the first hint after it."""

    due: datetime
    cursor: Cursor = START

    def note(self, due: datetime) -> None:
        """There is a hint to read, perhaps before the cursor."""
        self.due = min(self.due, due)
        self.cursor = min(self.cursor, (due, ""))

    def begin_page(self) -> Cursor:
        """The cursor to read a page from. Hints that are noted from here on may not be on it, and are read later."""
        cursor, self.due, self.cursor = self.cursor, NEVER, (NEVER, "")
        return cursor

    def end_page(self, cursor: Cursor, page: Sequence[Hint], now: datetime) -> list[Hint]:
        """The hints of the page that are due; the next page begins after them."""
        due = [hint for hint in page if hint.due <= now]
        if len(due) < len(page):
            self.due = min(self.due, page[len(due)].due)
        elif len(page) == PAGE:
            self.due = min(self.due, now)  # there may be more
        last = (due[-1].due, due[-1].webhook_id) if due else cursor
        self.cursor = min(self.cursor, last)
        return due


@dataclass
class HostQueue:
    """The hints of one host in one shard. ``running``: a task reads it."""

    slots: dict[datetime, Slot] = field(default_factory=dict)
    running: bool = False

    @property
    def due(self) -> datetime:
        return min((slot.due for slot in self.slots.values()), default=NEVER)

    def first(self) -> tuple[datetime, Slot]:
        """The start of the slot with the first due hint, and the slot."""
        return min(self.slots.items(), key=lambda item: item[1].due, default=(NEVER, Slot(NEVER)))

    def note(self, start: datetime, due: datetime) -> None:
        """There is a hint to read in the slot that begins at ``start``."""
        self.slots.setdefault(start, Slot(due)).note(due)
