"""Batching of concurrent Cassandra writes.

A statement costs the driver about half a millisecond of CPU, and Cassandra as much; a batch costs little more. A write
lingers for a moment, or until a batch is full.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from infra.cassandra.session import Session

MIN_WRITES = 10
"""Writes that any batch may have: Cassandra's default unlogged_batch_across_partitions_warn_threshold."""
BYTES_PER_WRITE = 1024
"""A batch may have a write for each of these bytes: twice the size of a write of the history."""
LINGER = 0.05  # seconds that a write waits for a batch: readers of the history tolerate this lag


class _Write(NamedTuple):
    cql: str
    parameters: Sequence[Any]
    size: int
    done: "asyncio.Future[None]"


class WriteBatches:
    """Groups idempotent writes of a session into batches. All methods belong to one event loop."""

    def __init__(self, session: Session, *, retry_for: float, in_flight: int) -> None:
        """``retry_for``: seconds, as in `Session.execute`; ``in_flight``: maximum number of concurrent batches."""
        self._session = session
        self.max_bytes = session.batch_bytes
        self.max_writes = max(MIN_WRITES, self.max_bytes // BYTES_PER_WRITE)
        self._retry_for = retry_for
        self._free = in_flight
        self._waiting: deque[_Write] = deque()
        self._senders: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Number of writes that wait for a batch."""
        return len(self._waiting)

    def write(self, cql: str, parameters: Sequence[Any]) -> "asyncio.Future[None]":
        """Enqueue a write; the future is done when it is acknowledged, or has the error of `Session.execute`.

        The caller bounds the number of its concurrent writes.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._waiting.append(_Write(cql, parameters, _size(parameters), done))
        if len(self._waiting) >= self.max_writes:
            self._start_sending()
        elif self._timer is None:
            self._timer = loop.call_later(LINGER, self._start_sending)
        return done

    def _start_sending(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._free:  # else the running senders take the waiting writes
            self._free -= 1
            sender = asyncio.create_task(self._send_all(), name="cassandra write batches")
            self._senders.add(sender)
            sender.add_done_callback(self._senders.discard)

    async def _send_all(self) -> None:
        try:
            while self._waiting:
                await self._send(self._next_batch())
        finally:
            self._free += 1

    def _next_batch(self) -> list[_Write]:
        batch = [self._waiting.popleft()]
        size = batch[0].size
        while self._waiting and len(batch) < self.max_writes and size + self._waiting[0].size <= self.max_bytes:
            batch.append(self._waiting.popleft())
            size += batch[-1].size
        return batch

    async def _send(self, batch: list[_Write]) -> None:
        try:
            if len(batch) == 1:
                await self._session.execute(batch[0].cql, batch[0].parameters, retry_for=self._retry_for)
            else:
                writes = [(write.cql, write.parameters) for write in batch]
                await self._session.write_batch(writes, retry_for=self._retry_for)
        except BaseException as error:
            for write in batch:
                if not write.done.done():
                    write.done.set_exception(error)
            if not isinstance(error, Exception):
                raise
        else:
            for write in batch:
                if not write.done.done():
                    write.done.set_result(None)


def _size(parameters: Sequence[Any]) -> int:
    """Approximate size of the parameters on the wire, in bytes."""
    return sum(_size_of(value) for value in parameters)


def _size_of(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, tuple | list):
        return sum(4 + _size_of(item) for item in value)
    return 8
