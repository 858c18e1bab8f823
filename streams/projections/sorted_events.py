"""Events of the log sorted by request and image on disk, so that memory doesn't grow with their number."""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from infra.errors import ExplainedError
from infra.spool import spool_file
from streams.events.base import Event
from streams.events.images import ImageFailed, ImageProcessed
from streams.events.registry import decode

OF_REQUEST = range(-1, 0)
"""In place of the indexes of images: the events about a request as a whole."""


class SortedEvents:
    """A table in a spool file. SQLite's page cache is 2 MB."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        database.execute("PRAGMA journal_mode = OFF")  # nothing is rolled back or committed
        database.execute("CREATE TABLE events (request_id TEXT, image INTEGER, value BLOB)")
        database.execute("CREATE INDEX by_image ON events (request_id, image)")

    @classmethod
    @contextmanager
    def open(cls, folder: Path) -> Iterator["SortedEvents"]:
        """``folder`` needs space for all events. Raises ExplainedError if it is full."""
        try:
            with spool_file(folder, "events-") as file:
                # Without SQLite's own locks, which would be at odds with that of the spool file on BSD.
                address = f"{Path(file.name).as_uri()}?nolock=1"
                with closing(sqlite3.connect(address, uri=True)) as database:
                    yield cls(database)
        except sqlite3.OperationalError as error:
            raise ExplainedError(f"cannot sort the events of the log in {folder}: {error}") from None

    def add(self, events: Iterable[tuple[Event, bytes]]) -> None:
        """Add events with their encoding, in the order of the log."""
        rows = (
            (event.request_id, event.index if isinstance(event, ImageProcessed | ImageFailed) else -1, value)
            for event, value in events
        )
        self._database.executemany("INSERT INTO events VALUES (?, ?, ?)", rows)

    def requests(self) -> Iterator[tuple[str, int]]:
        """Each request, and the number of its images up to the last that has a result."""
        yield from self._database.execute("SELECT request_id, max(image) + 1 FROM events GROUP BY request_id")

    def of(self, request_id: str, images: range) -> Iterator[Event]:
        """The events about images of a request by index, those about one in the order of the log."""
        selected = self._database.execute(
            "SELECT value FROM events WHERE request_id = ? AND image >= ? AND image < ? ORDER BY image, rowid",
            (request_id, images.start, images.stop),
        )
        return (decode(value) for (value,) in selected)
