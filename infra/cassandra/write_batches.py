"""Writes that are under way at the same time travel together.

A statement costs the driver about half a millisecond of CPU, and Cassandra as much, most of it the same for a batch of
them. A write waits for a moment for others to go with it, or until there are enough for a batch.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from infra.cassandra.session import Session

# Where Cassandra warns by default: batch_size_warn_threshold, and unlogged_batch_across_partitions_warn_threshold.
MAX_BYTES = 5 * 1024
MAX_WRITES = 10
LINGER = 0.05  # seconds that a write waits for others: what reads the history is not in such a hurry


class _Write(NamedTuple):
    cql: str
    parameters: Sequence[Any]
    size: int
    done: "asyncio.Future[None]"


class WriteBatches:
    """Makes idempotent writes of a session in batches. All methods belong to one event loop."""

    def __init__(self, session: Session, *, patience: float, in_flight: int) -> None:
        """``patience``: seconds, as for `Session.execute`; ``in_flight``: batches under way at once."""
        self._session = session
        self._patience = patience
        self._free = in_flight
        self._waiting: deque[_Write] = deque()
        self._senders: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """How many writes wait for their batch."""
        return len(self._waiting)

    async def write(self, cql: str, parameters: Sequence[Any]) -> None:
        """Return when the write is made, or raise what `Session.execute` would.

        The caller bounds how many of these it has waiting.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._waiting.append(_Write(cql, parameters, _size(parameters), done))
        if len(self._waiting) >= MAX_WRITES:
            self._start_sending()
        elif self._timer is None:
            self._timer = loop.call_later(LINGER, self._start_sending)
        await done

    def _start_sending(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._free:  # else those under way go on with what waits
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
        while self._waiting and len(batch) < MAX_WRITES and size + self._waiting[0].size <= MAX_BYTES:
            batch.append(self._waiting.popleft())
            size += batch[-1].size
        return batch

    async def _send(self, batch: list[_Write]) -> None:
        try:
            if len(batch) == 1:
                await self._session.execute(batch[0].cql, batch[0].parameters, patience=self._patience)
            else:
                writes = [(write.cql, write.parameters) for write in batch]
                await self._session.write_together(writes, patience=self._patience)
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
    """About how many bytes the parameters take on the wire."""
    return sum(_size_of(value) for value in parameters)


def _size_of(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, tuple | list):
        return sum(4 + _size_of(item) for item in value)
    return 8
