"""Which requests a pass over the progress table takes up."""

from collections.abc import Callable, Iterator, MutableMapping

from streams.progress.reconciler import REQUESTS_PER_PASS
from streams.progress.store import row_key, split_key

Rows = Iterator[tuple[str, bytes]]
"""Request id and row."""


class Passes:
    """All requests of a partition once it is assigned, as its earlier owner may have died over a retry; then those
    that were retried, which so need not wait for the next pass over all requests.
    """

    def __init__(self, table: MutableMapping[bytes, bytes], partition_of: Callable[[bytes], int]) -> None:
        self._table = table
        self._partition_of = partition_of
        self._retried: set[str] = set()
        self._taken_up: set[int] = set()

    def note_retry(self, request_id: str) -> None:
        self._retried.add(request_id)

    def next(self, own: set[int]) -> Rows | None:
        """The rows of a pass over the partitions ``own``; None if there is nothing to start."""
        self._taken_up &= own  # one that was revoked and assigned again has had another owner
        if not own <= self._taken_up:
            return self.rows_of(own)
        return self._retried_rows(own) if self._retried else None

    def note_done(self, own: set[int]) -> None:
        """A pass over these partitions has ended."""
        self._taken_up |= own

    def rows_of(self, own: set[int]) -> Rows:
        """The rows of all requests in these partitions."""
        for key, value in list(self._table.items()):
            request_id, chunk = split_key(key)
            if chunk is None and self._partition_of(key) in own:
                yield request_id, value

    def _retried_rows(self, own: set[int]) -> Rows:
        for _ in range(min(len(self._retried), REQUESTS_PER_PASS)):  # the others in the next one
            request_id = self._retried.pop()
            value = self._table.get(row_key(request_id))
            # A partition that has yet to catch up has a pass over all of its rows then.
            if value is not None and self._partition_of(row_key(request_id)) in own:
                yield request_id, value
