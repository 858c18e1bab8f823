"""Monitor of a worker: readiness, consumer lag, table recovery and stalled events."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import structlog
from aiokafka.errors import KafkaError
from faust.types import TP

from infra.cancellation import StrayCancellationError, cancel_and_wait, no_stray_cancellation, run_in_background
from infra.disk import free_bytes
from infra.errors import end_process
from infra.faust.worker_app import WorkerApp
from infra.observability import metrics
from infra.observability.metrics import Role
from infra.observability.probes import serving_probes
from infra.observability.readiness import NOT_OPEN, NotReady, Readiness
from infra.settings import Settings

logger = structlog.get_logger(__name__)

STOPPING = "the worker is stopping"
STALL_CHECK = 1.0
"""Interval (s) of the check for stalled events."""
STALL_GRACE = 10.0
"""Seconds for which a stalled worker fails its readiness probe before it ends."""


class WorkerMonitor:
    """Monitors one app from start to stop, and serves probes and metrics on ``SHRINKSTREAM_WORKER_PORT`` if it is set.

    ``readiness`` has the checks of every worker; an app adds its own.
    """

    def __init__(self, app: WorkerApp, role: Role, settings: Settings) -> None:
        self.readiness = Readiness()
        self._app = app
        self._role = role
        self._settings = settings
        self._end_offsets: Mapping[TP, int] = {}
        self._beginning_offsets: dict[TP, int] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Monitor for as long as the context lasts. Raises ProbesError."""
        app, settings = self._app, self._settings
        self.readiness.add_state("assignment", self._assignment_problem)
        if app.tables.changelog_topics:
            self.readiness.add_state("recovery", self._recovery_problem)
        self.readiness.add_state("events", self._stall_problem)
        self.readiness.add_check("kafka", self._check_kafka)
        for topic in self._topics():
            metrics.DEAD_LETTERS.labels(topic)  # starts at 0, so that `increase()` sees the first one
        metrics.LAG.read_from(self._lags)
        metrics.IN_FLIGHT.read_from(lambda: app.consumer.unfinished if app.is_connected else 0)
        metrics.DATA_FREE.read_from(lambda: free_bytes(settings.data_dir))
        metrics.TABLE_RECORDS.read_from(lambda: sum(len(table) for table in app.tables.values()))
        metrics.RECOVERING.read_from(lambda: float(app.in_recovery))
        metrics.RECOVERY_REMAINING.read_from(lambda: app.recovery_remaining)
        async with AsyncExitStack() as stack:
            if settings.worker_port is not None:
                registry = metrics.registry_of(self._role)
                await stack.enter_async_context(
                    serving_probes(settings.worker_host, settings.worker_port, self.readiness, registry)
                )
            await stack.enter_async_context(self.readiness.checking())
            watch = run_in_background(self._end_when_stalled(), name="watch for stalled events", on_failure=self._end)
            stack.push_async_callback(cancel_and_wait, watch)
            yield

    def note_assignment(self) -> None:
        """A rebalance is complete."""
        logger.info("partitions assigned", role=self._role, partitions=len(self._inputs()))

    def note_recovery(self, seconds: float) -> None:
        """The table is recovered from its changelog."""
        metrics.RECOVERY_SECONDS.observe(seconds)
        logger.info("table recovered", role=self._role, seconds=round(seconds, 3))

    def _topics(self) -> set[str]:
        return {name for agent in self._app.agents.values() for name in agent.get_topic_names()}

    def _inputs(self) -> set[TP]:
        """Assigned input partitions: those of the agents' topics, without changelogs."""
        topics = self._topics()
        return {tp for tp in self._app.consumer.assignment() if tp.topic in topics}

    # Checks

    def _assignment_problem(self) -> str | None:
        app = self._app
        if app.should_stop:
            return STOPPING
        if not app.has_assignment or (app.rebalancing and not app.tables.changelog_topics):
            return "rebalancing"
        return None  # also without partitions: an idle group member is ready

    def _recovery_problem(self) -> str | None:
        if self._app.in_recovery or self._app.rebalancing or not self._app.has_assignment:
            return f"recovering the table, {self._app.recovery_remaining} changelog records remaining"
        return None

    def _stall_problem(self) -> str | None:
        position = self._overdue()
        return f"stalled at {position}" if position else None

    def _overdue(self) -> str | None:
        return self._app.consumer.overdue() if self._app.is_connected and not self._app.should_stop else None

    async def _end_when_stalled(self) -> None:
        """End a worker that is stalled at an event: the event is redelivered to the partition's next owner."""
        while True:
            await asyncio.sleep(STALL_CHECK)
            if (position := self._overdue()) is None:
                continue
            logger.error("event stalled", role=self._role, position=position)
            await asyncio.sleep(STALL_GRACE)
            if self._overdue() == position:
                end_process(f"{self._role} is stalled at {position}: the event exceeds its maximum duration")

    def _end(self, error: BaseException) -> None:
        end_process(f"{self._role}: the check for stalled events failed: {error!r}", error=error)

    async def _check_kafka(self) -> None:
        """Fetch the end offsets of the assigned partitions from their leaders."""
        app = self._app
        if app.should_stop:
            return  # the check `assignment` fails then
        if not app.is_connected:
            raise NotReady(NOT_OPEN)
        inputs = self._inputs() or {TP(topic, 0) for topic in self._topics()}
        try:
            with no_stray_cancellation():
                await self._ask_offsets(inputs)
        except KafkaError as error:
            raise NotReady("Kafka doesn't answer", str(error)) from None
        except StrayCancellationError:
            # A stop ends the consumer's thread, and the queries that run in it.
            if not app.should_stop:
                raise

    async def _ask_offsets(self, inputs: set[TP]) -> None:
        consumer = self._app.consumer
        self._end_offsets = await consumer.end_offsets(inputs)
        unread = {tp for tp, end in self._end_offsets.items() if end and consumer.first_unfinished(tp) is None}
        if unknown := unread - self._beginning_offsets.keys():
            self._beginning_offsets |= await consumer.beginning_offsets(unknown)

    # Consumer lag

    def _lags(self) -> dict[tuple[str, ...], float]:
        return {(tp.topic, str(tp.partition)): lag for tp, lag in self._lag_by_partition()}

    def _lag_by_partition(self) -> Iterable[tuple[TP, int]]:
        if self._app.should_stop or not self._app.is_connected:
            return
        for tp in self._inputs() & self._end_offsets.keys():
            at = self._app.consumer.first_unfinished(tp)
            if at is None:
                at = self._beginning_offsets.get(tp, 0)
            yield tp, max(0, self._end_offsets[tp] - at)
