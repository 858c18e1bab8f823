"""Digest of an image's expected row, folded from the log to verify the history.

It takes a fraction of the memory of the events: a digest per column, and the write timestamps of the last results.
"""

from datetime import UTC, datetime
from struct import Struct
from typing import Any, NamedTuple

from streams.events.images import ImageFailed, ImageProcessed
from streams.projections.history.tables import IMAGE, OF_FAILURE, OF_SUCCESS
from streams.projections.history.write_clock import WriteClock

_DIGESTS = Struct(f"={len(IMAGE)}I")
_CLOCK = WriteClock()
_NOTHING = 0
_SEVERAL = 1  # two results with one write timestamp: the row may have either


class ImageDigest(NamedTuple):
    """The write timestamps of the last success and the last failure (-1: there is none), and a digest of each column.

    As in the history, the columns of a success or a failure are those of the last one, and all others of the last
    result.
    """

    succeeded: int = -1
    failed: int = -1
    columns: bytes = bytes(_DIGESTS.size)

    def after(self, event: ImageProcessed | ImageFailed) -> "ImageDigest":
        """The digest after an event; the order of the events doesn't matter."""
        is_success = isinstance(event, ImageProcessed)
        own, of_other = (OF_SUCCESS, OF_FAILURE) if is_success else (OF_FAILURE, OF_SUCCESS)
        written = _CLOCK.image(event)
        last_alike, latest = self.succeeded if is_success else self.failed, max(self.succeeded, self.failed)
        digests = list(_DIGESTS.unpack(self.columns))
        for position, column in enumerate(IMAGE):
            if column in of_other or (digest := _digest(getattr(event, column.field))) == _NOTHING:
                continue
            known, last = digests[position], last_alike if column in own else latest
            if written > last or known == _NOTHING:
                digests[position] = digest
            elif written == last and known != digest:
                digests[position] = _SEVERAL
        columns = _DIGESTS.pack(*digests)
        if is_success:
            return ImageDigest(max(self.succeeded, written), self.failed, columns)
        return ImageDigest(self.succeeded, max(self.failed, written), columns)

    def wrong_columns(self, row: tuple[Any, ...]) -> list[str]:
        """The differences between a row of the history (its columns `IMAGE`) and the log."""
        wrong = []
        for (column, _), value, expected in zip(IMAGE, row, _DIGESTS.unpack(self.columns), strict=True):
            # A failure has no other columns; but output_path and reason must match, or it is no failure.
            if expected == _SEVERAL or (expected == _NOTHING and column not in ("output_path", "reason")):
                continue
            found = value.replace(tzinfo=UTC) if isinstance(value, datetime) else value
            if column == "cells" and value is not None:
                found = tuple(value)
            if _digest(found) != expected:
                wrong.append(f"{column} is {found!r}, which differs from the log")
        return wrong


def _digest(value: Any) -> int:
    return _NOTHING if value is None else hash(value) % (2**32 - 2) + 2
