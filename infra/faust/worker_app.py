"""Interface of the app and its consumer for the guards and the monitor."""

import asyncio
from collections.abc import Iterable, Mapping
from time import monotonic
from typing import Any, Protocol

import faust
from faust.types import TP, Message
from mode.utils.objects import cached_property

from infra.faust.lease import Lease

STOP_DRAIN = 6.0
"""Drain deadline (s) of a clean stop; leaving the group and Faust's own shutdown follow."""


class WorkerConsumer(Protocol):
    """The guarded consumer, as its app, streams and monitor see it."""

    @property
    def is_connected(self) -> bool: ...
    @property
    def unfinished(self) -> int:
        """Number of in-flight events: delivered and not finished."""

    def assignment(self) -> Any: ...
    def first_unfinished(self, tp: TP) -> int | None: ...
    def overdue(self) -> str | None: ...
    def note_start(self, message: Message, max_seconds: float) -> None: ...
    def note_dropped(self, message: Message) -> None: ...
    async def end_offsets(self, partitions: Iterable[TP]) -> Mapping[TP, int]: ...
    async def beginning_offsets(self, partitions: Iterable[TP]) -> Mapping[TP, int]: ...


class WorkerApp(faust.App):
    """A Faust app with a guarded consumer.

    ``delivery_window``: maximum number of events in flight; ``read_ahead``: the same in bytes; both None: unbounded.
    """

    consumer: WorkerConsumer  # type: ignore[assignment]  # Faust's own type lacks what the guards add
    delivery_window: int | None = None
    read_ahead: int | None = None
    waiting: dict[Message, "asyncio.Task[None]"]
    """Delivered events whose handler waits to be admitted."""
    has_assignment = False
    drained_by: float | None = None
    """End of the drain (monotonic clock) of an app that is being stopped."""

    @cached_property
    def lease(self) -> Lease:
        """The right to write, of an app with tables."""
        conf = self.conf
        return Lease(conf.broker_session_timeout, conf.broker_rebalance_timeout, conf.broker_rebalance_timeout)

    @property
    def is_connected(self) -> bool:
        """Whether the consumer exists and is connected."""
        return self._consumer is not None and self.consumer.is_connected

    @property
    def recovery_remaining(self) -> int:
        """Changelog records that recovery has yet to read."""
        recovery: Any = self.tables
        return max(0, recovery.recovery.active_remaining_total()) if self.in_recovery else 0

    @property
    def drain_seconds(self) -> float:
        """Remaining seconds of the drain deadline for in-flight events when their stream ends."""
        return STOP_DRAIN if self.drained_by is None else max(0.0, self.drained_by - monotonic())
