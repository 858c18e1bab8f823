"""F4: which offsets of a partition may be committed."""


class PartitionOffsets:
    """Offset tracker of one partition: which offset may be committed, given the delivered and the finished ones."""

    __slots__ = ("_deadlines", "_unfinished", "committed", "dropped", "position", "unfinished_bytes")

    def __init__(self, committed: int | None = None) -> None:
        self.committed = committed
        self.position = committed  # the offset after the last one delivered
        self.dropped: int | None = None  # the first offset that was fetched and then discarded
        self._unfinished: dict[int, int] = {}  # offset → bytes
        self.unfinished_bytes = 0
        self._deadlines: dict[int, float] = {}

    def deliver(self, offset: int, size: int = 0) -> None:
        if self.committed is None:
            self.committed = offset  # a restart would begin here
        self._unfinished[offset] = size
        self.unfinished_bytes += size
        self.position = offset + 1

    def start(self, offset: int, deadline: float) -> None:
        """An agent has begun the event; if a topic has several agents, the latest ``deadline`` counts."""
        if offset in self._unfinished:
            self._deadlines[offset] = max(deadline, self._deadlines.get(offset, deadline))

    def finish(self, offset: int) -> None:
        """Ignores an offset that was not delivered since the last seek: it will be redelivered."""
        self.unfinished_bytes -= self._unfinished.pop(offset, 0)
        self._deadlines.pop(offset, None)

    def overdue(self, now: float) -> int | None:
        """The lowest offset whose deadline has passed, if any."""
        return min((offset for offset, deadline in self._deadlines.items() if deadline <= now), default=None)

    def drop(self, offset: int) -> None:
        """The offset was fetched, but no agent gets it unless a seek goes back."""
        self.dropped = offset if self.dropped is None else min(offset, self.dropped)

    @property
    def unfinished(self) -> int:
        return len(self._unfinished)

    @property
    def span(self) -> int:
        """Number of offsets that a restart would deliver again, finished ones among them."""
        return (self.position or 0) - min(self._unfinished) if self._unfinished else 0

    def is_unfinished(self, offset: int) -> bool:
        return offset in self._unfinished

    @property
    def first_unfinished(self) -> int | None:
        """The offset at which a restart must begin; None: the first record."""
        return min(self._unfinished, default=self.position)

    def committable(self) -> int | None:
        """The offset to commit, if it is beyond the committed one.

        Offsets that were never delivered (compacted away, transaction markers) don't matter: the next
        unfinished one, or the position, is right whatever lies between.
        """
        offset = self.first_unfinished
        if offset is None or (self.committed is not None and offset <= self.committed):
            return None
        return offset
