"""The progress table: its keys, its codecs, and the fold of an event into it.

A request has a row, its state, which is written a handful of times, and a tally for each chunk of its images, which
changes with each image: the bytes written per event are constant in the size of the request.
"""

import struct
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple

from pydantic import TypeAdapter

from streams.events.base import Event
from streams.events.images import ImageFailed, ImageProcessed
from streams.events.progress import ProgressEvicted
from streams.request.lifecycle import RequestState, Tombstone, evolve
from streams.request.reconcile import TOMBSTONE_KEPT
from streams.request.tally import (
    EMPTY,
    IMAGES_PER_CHUNK,
    Tally,
    chunk_count,
    chunk_of,
    from_milliseconds,
    milliseconds,
)

Read = Callable[[bytes], bytes | None]
Changes = dict[bytes, bytes | None]  # None: the key is deleted

ROWS_CACHED = 256
_TOMBSTONE = b"evicted "
_STATE = TypeAdapter(RequestState)
# run, succeeded, failed, input bytes, output bytes, time of the last change; the bitmap follows
_TALLY = struct.Struct("<HHHQQQ")


def row_key(request_id: str) -> bytes:
    return request_id.encode()


def tally_key(request_id: str, chunk: int) -> bytes:
    return b"%s/%d" % (request_id.encode(), chunk)


def split_key(key: bytes) -> tuple[str, int | None]:
    """Request id, and the number of the chunk or None for the row."""
    request_id, _, chunk = key.decode().partition("/")
    return request_id, int(chunk) if chunk else None


def encode_row(entry: RequestState | Tombstone) -> bytes:
    if isinstance(entry, Tombstone):
        return _TOMBSTONE + b"%d %d" % (milliseconds(entry.evicted_at), entry.run)
    return _STATE.dump_json(entry, exclude_defaults=True)


@lru_cache(ROWS_CACHED)  # a row is decoded once for all the images that come before its next change
def decode_row(value: bytes) -> RequestState | Tombstone:
    if value.startswith(_TOMBSTONE):
        evicted_ms, run = value.removeprefix(_TOMBSTONE).split()
        return Tombstone(int(run), from_milliseconds(int(evicted_ms)))
    return _STATE.validate_json(value)


def encode_tally(tally: Tally) -> bytes:
    return _TALLY.pack(*tally[:-1]) + tally.states


def decode_tally(value: bytes | None) -> Tally:
    if value is None:
        return EMPTY
    run, succeeded, failed, input_bytes, output_bytes, updated_ms = _TALLY.unpack_from(value)
    return Tally(run, succeeded, failed, input_bytes, output_bytes, updated_ms, value[_TALLY.size :])


def read_row(request_id: str, read: Read) -> RequestState | Tombstone | None:
    value = read(row_key(request_id))
    return None if value is None else decode_row(value)


def read_tallies(entry: RequestState | Tombstone | None, read: Read) -> Iterator[Tally]:
    """The tallies of all chunks of a request, in order."""
    if isinstance(entry, RequestState):
        for chunk in range(chunk_count(entry.total)):
            yield decode_tally(read(tally_key(entry.request_id, chunk)))


class Folded(NamedTuple):
    """An event folded into the table: the changes, the row after them, and the tally of the event's image."""

    changes: Changes
    row: bytes | None
    tally: Tally | None = None

    @property
    def entry(self) -> RequestState | Tombstone | None:
        """The request after the event. A rebuild, which has no reactions, doesn't decode it for each image."""
        return None if self.row is None else decode_row(self.row)


def fold(event: Event, read: Read) -> Folded:
    """Fold an event; a redelivery, or an event that the table doesn't keep, changes nothing."""
    row = read(row_key(event.request_id))
    if isinstance(event, ImageProcessed | ImageFailed):
        return _fold_result(event, row, read)
    before = None if row is None else decode_row(row)
    if isinstance(event, ProgressEvicted) and event.stage == "orphaned":
        return Folded({} if isinstance(before, RequestState) else _without_orphans(event, read), row)
    after = evolve(before, event)
    if after is before:
        return Folded({}, row)
    changes: Changes = {}
    if isinstance(before, RequestState) and not isinstance(after, RequestState):
        # The row last: after a kill between two writes the redelivered event finds it, and evicts the rest.
        changes.update((tally_key(event.request_id, chunk), None) for chunk in range(chunk_count(before.total)))
    row = changes[row_key(event.request_id)] = None if after is None else encode_row(after)
    return Folded(changes, row)


def apply(changes: Changes, table: MutableMapping[bytes, bytes]) -> None:
    for key, value in changes.items():
        if value is None:
            table.pop(key, None)
        else:
            table[key] = value


def orphaned(records: Iterable[tuple[bytes, bytes]], read: Read, now: datetime) -> Iterator[ProgressEvicted]:
    """The evictions of tallies among ``records`` of the table that have had no request for too long.

    Their upload was cut off before its RequestCreated, or a result was redelivered long after the eviction. Should the
    request come after all, its results are republished from the log.
    """
    latest: dict[str, tuple[int, int]] = {}  # request id → its highest chunk, and when one of them changed last
    for key, value in records:
        request_id, chunk = split_key(key)
        if chunk is not None and not isinstance(read_row(request_id, read), RequestState):
            highest, updated_ms = latest.get(request_id, (0, 0))
            latest[request_id] = max(highest, chunk), max(updated_ms, decode_tally(value).updated_ms)
    for request_id, (highest, updated_ms) in latest.items():
        if now - from_milliseconds(updated_ms) > TOMBSTONE_KEPT:
            images = (highest + 1) * IMAGES_PER_CHUNK
            yield ProgressEvicted(request_id=request_id, stage="orphaned", images=images)


def _fold_result(event: ImageProcessed | ImageFailed, row: bytes | None, read: Read) -> Folded:
    if row is not None and row.startswith(_TOMBSTONE):
        return Folded({}, row)
    chunk, position = chunk_of(event.index)
    key = tally_key(event.request_id, chunk)
    before = decode_tally(read(key))
    after = before.settle(position, event)
    return Folded({} if after is before else {key: encode_tally(after)}, row, after)


def _without_orphans(event: ProgressEvicted, read: Read) -> Changes:
    keys = (tally_key(event.request_id, chunk) for chunk in range(chunk_count(event.images or 0)))
    return {key: None for key in keys if read(key) is not None}
