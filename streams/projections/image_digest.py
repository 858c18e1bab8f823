"""What the log says of an image's row: what a comparison of the whole history remembers of each image.

A fraction of the events themselves: digests of the columns, and which attempts they are of.
"""

from datetime import UTC, datetime
from struct import Struct
from typing import Any, NamedTuple

from streams.events.images import ImageFailed, ImageProcessed
from streams.projections.history import IMAGE_COLUMNS, milliseconds_of

_DIGESTS = Struct(f"={len(IMAGE_COLUMNS)}I")
_NOTHING = 0
_SEVERAL = 1  # the same attempt was told twice and otherwise: which of them the row has depends on no order

_OF_SUCCESS = frozenset(
    ("output_url", "output_path", "input_bytes", "output_bytes", "format", "width", "height", "sha256",
     "kept_original", "milliseconds")
)  # fmt: skip
_OF_FAILURE = frozenset(("reason", "detail"))
_FIELDS = {"attempt": "run", "row_number": "row"}
_NOT_COMPARED = frozenset(("settled_at",))  # a repeat of the same result has another time


class ImageDigest(NamedTuple):
    """The attempts of the last success and the last failure (-1: there is none), and a digest of each column.

    As in the history, a success holds whatever fails later, but what any result tells is of the latest.
    """

    succeeded: int = -1
    failed: int = -1
    columns: bytes = bytes(_DIGESTS.size)

    def after(self, event: ImageProcessed | ImageFailed) -> "ImageDigest":
        """With what an event says, in whatever order they come."""
        is_success = isinstance(event, ImageProcessed)
        own, of_other = (_OF_SUCCESS, _OF_FAILURE) if is_success else (_OF_FAILURE, _OF_SUCCESS)
        order = (event.run, is_success)
        last_alike = (self.succeeded if is_success else self.failed, is_success)
        latest = max((self.succeeded, True), (self.failed, False))
        digests = list(_DIGESTS.unpack(self.columns))
        for place, column in enumerate(IMAGE_COLUMNS):
            if column in of_other or column in _NOT_COMPARED:
                continue
            said, known = _digest(_said(event, column)), digests[place]
            if said == _NOTHING:
                continue
            last = last_alike if column in own else latest
            if order > last or known == _NOTHING:
                digests[place] = said
            elif order == last and known != said:
                digests[place] = _SEVERAL
        columns = _DIGESTS.pack(*digests)
        if is_success:
            return ImageDigest(max(self.succeeded, event.run), self.failed, columns)
        return ImageDigest(self.succeeded, max(self.failed, event.run), columns)

    def wrong_columns(self, row: tuple[Any, ...]) -> list[str]:
        """What is other in a row of the history (its ``IMAGE_COLUMNS``) than the log says."""
        wrong = []
        for column, value, said in zip(IMAGE_COLUMNS, row, _DIGESTS.unpack(self.columns), strict=True):
            # Nothing is said of the rest of a failed image's row; but what makes it one must hold.
            if said == _SEVERAL or (said == _NOTHING and column not in ("output_path", "reason")):
                continue
            found = value.replace(tzinfo=UTC) if isinstance(value, datetime) else value
            if column == "cells" and value is not None:
                found = tuple(value)
            if _digest(found) != said:
                wrong.append(f"{column} is {found!r}, which is not what the log says")
        return wrong


def _said(event: ImageProcessed | ImageFailed, column: str) -> Any:
    if column in _FIELDS:
        return getattr(event, _FIELDS[column])
    if column == "milliseconds" and isinstance(event, ImageProcessed):
        return milliseconds_of(event)
    return getattr(event, column)


def _digest(value: Any) -> int:
    return _NOTHING if value is None else hash(value) % (2**32 - 2) + 2
