"""What a worker tells of itself: whether it may take work, how far behind it is, how its table's recovery goes."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import structlog
from aiokafka.errors import KafkaError
from faust.types import TP

from infra import metrics
from infra.cancellation import cancel_and_wait, run_beside
from infra.disk import free_bytes
from infra.errors import end_process
from infra.metrics import Role
from infra.probes import serving_probes
from infra.readiness import NOT_OPEN, NotReady, Readiness
from infra.settings import Settings

if TYPE_CHECKING:
    from infra.faust_app import GuardedApp  # which makes the monitor

log = structlog.get_logger(__name__)

STOPPING = "the worker is being stopped"
STALL_CHECK = 1.0
"""Seconds between two checks for an event that is under way for too long."""
STALL_GRACE = 10.0
"""Seconds for which a stalled worker says so to its probes before it ends."""


class WorkerMonitor:
    """Watches one app from its start to its stop, and answers at ``SHRINKSTREAM_WORKER_PORT`` where that is set.

    ``readiness`` has what every worker needs; an app adds what else it does.
    """

    def __init__(self, app: "GuardedApp", role: Role, settings: Settings) -> None:
        self.readiness = Readiness()
        self._app = app
        self._role = role
        self._settings = settings
        self._ends: Mapping[TP, int] = {}
        self._beginnings: dict[TP, int] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Watch for as long as the context lasts. Raises ProbesError."""
        app, settings = self._app, self._settings
        self.readiness.add_state("assignment", self._assignment_problem)
        if app.tables.changelog_topics:
            self.readiness.add_state("recovery", self._recovery_problem)
        self.readiness.add_state("events", self._stall_problem)
        self.readiness.add_question("kafka", self._ask_kafka)
        for topic in self._topics():
            metrics.DEAD_LETTERS.labels(topic)  # so that the first one is an increase
        metrics.LAG.read_from(self._lags)
        metrics.UNFINISHED.read_from(lambda: app.consumer.unfinished if app.is_connected else 0)
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
            await stack.enter_async_context(self.readiness.asking())
            watch = run_beside(self._end_when_stalled(), name="watch for stalled events", on_failure=self._end)
            stack.push_async_callback(cancel_and_wait, watch)
            yield

    def note_assignment(self) -> None:
        """The group has agreed on who reads what."""
        log.info("partitions assigned", role=self._role, partitions=len(self._inputs()))

    def note_recovery(self, seconds: float) -> None:
        """The table was read from its changelog."""
        metrics.RECOVERY_SECONDS.observe(seconds)
        log.info("table read", role=self._role, seconds=round(seconds, 3))

    def _topics(self) -> set[str]:
        return {name for agent in self._app.agents.values() for name in agent.get_topic_names()}

    def _inputs(self) -> set[TP]:
        """The partitions whose events this worker processes: those of its topics, without changelogs."""
        topics = self._topics()
        return {tp for tp in self._app.consumer.assignment() if tp.topic in topics}

    # Checks

    def _assignment_problem(self) -> str | None:
        app = self._app
        if app.should_stop:
            return STOPPING
        if not app.has_assignment or (app.rebalancing and not app.tables.changelog_topics):
            return "the partitions are being shared out"
        return None  # also without any: who has joined a group that has no work for it is ready for some

    def _recovery_problem(self) -> str | None:
        if self._app.in_recovery or self._app.rebalancing or not self._app.has_assignment:
            return f"the table is being read, {self._app.recovery_remaining} records to go"
        return None

    def _stall_problem(self) -> str | None:
        place = self._overdue()
        return f"stalled at {place}" if place else None

    def _overdue(self) -> str | None:
        return self._app.consumer.overdue() if self._app.is_connected and not self._app.should_stop else None

    async def _end_when_stalled(self) -> None:
        """End a worker whose event takes several times as long as it ever may: its successor gets the event again."""
        while True:
            await asyncio.sleep(STALL_CHECK)
            if (place := self._overdue()) is None:
                continue
            log.error("event stalled", role=self._role, place=place)
            await asyncio.sleep(STALL_GRACE)
            if self._overdue() == place:
                end_process(f"{self._role} is stalled at {place}: the event takes longer than it ever may")

    def _end(self, error: BaseException) -> None:
        end_process(f"{self._role} can't watch for stalled events: {error!r}", error=error)

    async def _ask_kafka(self) -> None:
        """Learn where the partitions end, which the brokers that lead them know."""
        app = self._app
        if app.should_stop:
            return  # of which the assignment tells
        if not app.is_connected:
            raise NotReady(NOT_OPEN)
        inputs = self._inputs() or {TP(topic, 0) for topic in self._topics()}
        try:
            self._ends = await app.consumer.ends(inputs)
            unbegun = {tp for tp, end in self._ends.items() if end and app.consumer.first_unfinished(tp) is None}
            if unasked := unbegun - self._beginnings.keys():
                self._beginnings |= await app.consumer.beginnings(unasked)
        except KafkaError as error:
            raise NotReady("it doesn't answer", str(error)) from None

    # What is behind

    def _lags(self) -> dict[tuple[str, ...], float]:
        return {(tp.topic, str(tp.partition)): lag for tp, lag in self._lag_by_partition()}

    def _lag_by_partition(self) -> Iterable[tuple[TP, int]]:
        if self._app.should_stop or not self._app.is_connected:
            return
        for tp in self._inputs() & self._ends.keys():
            at = self._app.consumer.first_unfinished(tp)
            if at is None:
                at = self._beginnings.get(tp, 0)
            yield tp, max(0, self._ends[tp] - at)
