"""F5, F6: changelog writes that the brokers acknowledge, or the process ends."""

import asyncio
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, cast

import faust
from faust.transport.drivers import aiokafka as driver
from faust.transport.producer import ProducerBuffer
from faust.types import TP
from faust.types.transports import ProducerT
from faust.types.tuples import FutureMessage

from infra.errors import end_process
from infra.faust.fence import FencedProducer
from infra.faust.tables import GuardedTable
from infra.faust.worker_app import WorkerApp
from infra.observability import metrics

PUBLISH_TIMEOUT = 30.0
"""Seconds within which the brokers must acknowledge a changelog write."""

UNACKNOWLEDGED_LIMIT = 1000
"""Unacknowledged changelog writes at which backpressure stops the delivery of events."""

_produced_to = cache(metrics.PRODUCED.labels)


class GuardedBuffer(ProducerBuffer):
    """F6: ``flush()`` returns when the brokers have acknowledged every write.

    Trap: Faust's version gives up when no message leaves the buffer for 0.1 s, and overlooks the one that has just
    left (transport/producer.py ``flush_atmost``): an event is committed whose changelog writes may yet be
    lost. Upstream: faust-streaming/faust pull request #273 relies on it.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._unacknowledged: set[FutureMessage] = set()

    def put(self, fut: FutureMessage) -> None:
        self._unacknowledged.add(fut)
        fut.add_done_callback(self._unacknowledged.discard)
        super().put(fut)

    async def flush(self) -> None:
        """Wait for the writes that are in the buffer now: later ones belong to a later commit."""
        if writes := set(self._unacknowledged):
            _, late = await asyncio.wait(writes, timeout=2 * PUBLISH_TIMEOUT)
            if late:
                end_process(f"the brokers did not acknowledge {len(late)} changelog writes")

    async def wait_until_ebb(self) -> None:
        if len(self._unacknowledged) > UNACKNOWLEDGED_LIMIT:
            await self.flush()


class GuardedProducer(driver.Producer):
    """Faust's producer, which only writes changelogs here: idempotent, fenced, with the guarded buffer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.buffer = GuardedBuffer(loop=self.loop, beacon=self.beacon)
        self.buffer.app = self.app

    def _settings_extra(self) -> Mapping[str, Any]:
        return {"acks": "all", "enable_idempotence": True, "lease": cast("WorkerApp", self.app).lease}

    @property
    def _producer_type(self) -> type[FencedProducer]:
        return FencedProducer

    async def flush(self) -> None:
        """F6: deferred table writes are among those that a commit, a rebalance or a stop waits for."""
        for table in self.app.tables.values():
            await cast("GuardedTable", table).flush()
        await super().flush()

    async def claim(self, partitions: Iterable[TP]) -> None:
        """Fence off the earlier owners of changelog partitions."""
        await self._fenced.claim(partitions)

    async def renew(self, partitions: Iterable[TP]) -> None:
        """Keep the claims from expiring. Raises KafkaError."""
        await self._fenced.renew(partitions)

    @property
    def _fenced(self) -> FencedProducer:
        return cast("FencedProducer", self._ensure_producer())


class GuardedTopic(faust.Topic):
    """F5: a record that the brokers reject ends the process.

    Trap: Faust logs a warning and commits the event (topics.py ``_on_published``).
    """

    def _on_published(
        self, fut: "asyncio.Future[Any]", message: FutureMessage, producer: ProducerT, state: Any
    ) -> None:
        if fut.cancelled() or fut.exception() is not None:
            cause = "cancelled" if fut.cancelled() else repr(fut.exception())
            end_process(f"cannot write a record to {self.get_topic_name()}: {cause}")
        _produced_to(self.get_topic_name()).inc()
        super()._on_published(fut, message, producer, state)
