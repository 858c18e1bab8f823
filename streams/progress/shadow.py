"""Requests folded from the log apart from the table, and the changes that correct the table. Pure."""

from collections.abc import Iterable, Mapping
from datetime import datetime

from streams.events.base import Event
from streams.events.requests import RequestRetried
from streams.progress.store import Changes, apply, decode_row, encode_row, fold, read_row, row_key, split_key, tally_key
from streams.request.lifecycle import RequestState, Tombstone, must_restore
from streams.request.tally import chunk_count

TAPPED_EVENTS = 10_000
"""Events of the live fold that wait for the rebuild; with more of them the log is read further first."""


class Shadow:
    """Some requests, folded from the log apart from the table.

    ``tap`` gets the events about them that the live fold takes meanwhile. ``restored``: requests that are retried
    after their eviction, with their creation: the live fold restores them from the log, and so must this.
    ``chunks``: how many tallies of a request may be in the table or here.
    """

    def __init__(self, requests: Iterable[str], tombstones: Mapping[str, Tombstone]) -> None:
        self.requests = set(requests)
        self.records: dict[bytes, bytes] = {row_key(name): encode_row(tombstones[name]) for name in tombstones}
        self.restored: dict[str, datetime] = {}
        self._tapped: list[Event] | None = None
        self.chunks: dict[str, int] = {}

    def fold(self, event: Event) -> None:
        if event.request_id not in self.requests or event.request_id in self.restored:
            return
        if isinstance(event, RequestRetried) and must_restore(read_row(event.request_id, self.records.get), event):
            self.restored[event.request_id] = event.created_at
            return
        changes = fold(event, self.records.get).changes
        apply(changes, self.records)
        for key in changes:
            self.saw(key)

    def saw(self, key: bytes) -> None:
        """Note a key of the table or of these records: its request may have tallies up to this chunk."""
        name, chunk = split_key(key)
        if chunk is not None and name in self.requests:
            self.chunks[name] = max(self.chunks.get(name, 0), chunk + 1)

    def open_tap(self) -> None:
        self._tapped = []

    def close_tap(self) -> None:
        self._tapped = None

    def tap(self, event: Event) -> None:
        """An event that the live fold has just taken."""
        if self._tapped is not None and event.request_id in self.requests and len(self._tapped) <= TAPPED_EVENTS:
            self._tapped.append(event)

    def drain(self) -> bool:
        """Fold the tapped events; False if there were too many to keep."""
        tapped, self._tapped = self._tapped or [], []
        if len(tapped) > TAPPED_EVENTS:
            return False
        for event in tapped:
            self.fold(event)
        return True

    def corrections(self, request_id: str, table: Mapping[bytes, bytes]) -> Changes:
        """The changes that make a request's records in the table into these."""
        if request_id in self.restored:
            return {}
        row = table.get(row_key(request_id))
        try:
            state = None if row is None else decode_row(row)
        except ValueError:  # not written by a worker: it is replaced
            state = None
        chunks = max(self.chunks.get(request_id, 0), chunk_count(state.total) if isinstance(state, RequestState) else 0)
        # The row last: a row means that its request is in the table.
        keys = [*(tally_key(request_id, chunk) for chunk in range(chunks)), row_key(request_id)]
        return {key: self.records.get(key) for key in keys if self.records.get(key) != table.get(key)}
