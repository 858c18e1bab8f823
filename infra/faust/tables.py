"""Z1 to Z4: tables that only the owner of a partition writes, and that hold nothing of other partitions."""

import asyncio
import logging
from collections.abc import Set
from time import monotonic
from typing import Any, cast

import faust
from aiokafka.errors import KafkaError
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery, ServiceStopped
from faust.types import TP
from mode import Seconds, Service
from mode.services import WaitArgT

from infra.cancellation import run_in_background
from infra.errors import end_process
from infra.faust.worker_app import WorkerApp

FLUSH_INTERVAL = 0.1
"""Maximum delay (s) of a deferred write."""

DEFERRED_LIMIT = 1000
"""Number of deferred keys at which they are written at once."""

CLAIM_RENEWAL = 86_400.0
"""Interval (s) of renewing the producer ids of the claimed partitions, which brokers keep for a week."""

logger = logging.getLogger(__name__)


class GuardedTable(faust.Table):  # type: ignore[type-arg]
    """A table in memory that is written with the lease only, and knows each key's partition.

    A value that changes with every event is deferred: its changes within `FLUSH_INTERVAL` share one changelog record.
    Deferred writes come before every later one, and before the commit of the events that they belong to.

    Z4. Trap: Faust notes the partition of the keys that a recovery reads, not of those that are written
    (stores/memory.py), and keeps the keys of a partition that it loses. When the partition comes back, keys that
    others deleted are still there once compaction has removed the tombstones.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._deferred: dict[Any, tuple[int | None, Any]] = {}

    def defer(self, key: Any, value: Any) -> None:
        """Set a value whose changelog record may wait for the next changes of it."""
        if not self._deferred:
            self._flushing = run_in_background(self._flush_later(), name="deferred table writes", on_failure=_end)
        partition = self.partition_for_key(key)
        self._deferred.pop(key, None)  # to the end: the order is that of the last changes
        self._deferred[key] = partition, value
        self.data[key] = value
        self._partitions[key] = partition
        if len(self._deferred) >= DEFERRED_LIMIT:
            self._write_deferred()

    async def flush(self) -> None:
        """Write what is deferred; waits for the lease."""
        if self._deferred:
            await cast("WorkerApp", self.app).lease.wait()
            self._write_deferred()

    async def _flush_later(self) -> None:
        await asyncio.sleep(FLUSH_INTERVAL)
        await self.flush()

    def _write_deferred(self) -> None:
        deferred, self._deferred = self._deferred, {}
        for key, (partition, value) in deferred.items():
            self._write(partition, key, value)

    def send_changelog(self, partition: int | None, key: Any, value: Any, *args: Any, **options: Any) -> Any:
        self._write_deferred()
        return self._write(partition, key, value, *args, **options)

    def _write(self, partition: int | None, key: Any, value: Any, *args: Any, **options: Any) -> Any:
        cast("WorkerApp", self.app).lease.require("a table write")
        sent = super().send_changelog(partition, key, value, *args, **options)
        if value is None:
            self._partitions.pop(key, None)
        else:
            self._partitions[key] = partition
        return sent

    def keep_only(self, partitions: Set[int]) -> None:
        """Forget the keys of all other partitions. A rebalance has flushed all writes."""
        if self._deferred:
            end_process("deferred table writes outlasted a rebalance")
        data = cast("Any", self.data).data
        for key in [key for key, partition in self._partitions.items() if partition not in partitions]:
            del self._partitions[key]
            data.pop(key, None)

    @property
    def _partitions(self) -> dict[Any, int | None]:
        return cast("Any", self.data)._key_partition  # type: ignore[no-any-return]


def _end(error: BaseException) -> None:
    end_process(f"deferred table writes failed: {error!r}", error=error)


class GuardedRecovery(Recovery):
    """Claims a table's partitions before they are read; ends the process when a rebalance can't be completed.

    Trap: Faust takes a step that exceeds its timeout for a stop of the service (tables/recovery.py ``_wait``):
    the worker stays in the group and never processes anything again.
    """

    async def _wait(self, coro: WaitArgT, timeout: Seconds | None = None) -> None:
        try:
            await super()._wait(coro, timeout)
        except ServiceStopped:
            if not self.should_stop:
                end_process(f"the brokers did not answer in {timeout} s during a rebalance")
            raise

    async def on_rebalance(
        self, assigned: set[TP], revoked: set[TP], newly_assigned: set[TP], generation_id: int = 0
    ) -> None:
        """Z4: keep only the partitions that this worker owned in the generation before, too; read the others whole."""
        kept = self.active_tps.copy() if generation_id == self._generation_id + 1 else set()
        await super().on_rebalance(assigned, revoked, newly_assigned, generation_id)
        kept &= self.active_tps
        for tp in self.active_tps - kept:
            self.active_offsets[tp] = None  # type: ignore[assignment]  # Faust's own mark of an unread partition
        for table in self.tables.values():
            cast("GuardedTable", table).keep_only({tp.partition for tp in kept})

    async def _build_highwaters(self, consumer: Any, tps: set[TP], destination: Any, title: str) -> None:
        """Z3: the fence comes before the end of the recovery. The flow is stopped, and all writes are flushed."""
        if title == "active":
            await cast("Any", self.app.producer).claim(tps)
        await super()._build_highwaters(consumer, tps, destination, title)

    @Service.task
    async def _renew_claims(self) -> None:
        while not self.should_stop:
            await self.sleep(CLAIM_RENEWAL)
            try:
                async with asyncio.timeout(self.app.conf.broker_request_timeout):
                    await cast("Any", self.app.producer).renew(self.active_tps.copy())
            except (KafkaError, TimeoutError) as error:
                logger.warning("cannot renew the claims of changelog partitions, trying again tomorrow: %r", error)

    def _set_recovery_started(self) -> None:
        if not self.in_recovery:
            self._began_at = monotonic()
        super()._set_recovery_started()

    def _set_recovery_ended(self) -> None:
        if self.in_recovery:
            cast("Any", self.app).worker_monitor.note_recovery(monotonic() - self._began_at)
        super()._set_recovery_ended()


class GuardedTableManager(TableManager):
    """Makes the guarded recovery."""

    @property
    def recovery(self) -> Recovery:
        if self._recovery is None:
            self._recovery = GuardedRecovery(self.app, self, beacon=self.beacon, loop=self.loop)
        return self._recovery
