"""The guarded Faust app: made of the guarded parts, created and run in one way."""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Mapping
from time import monotonic
from typing import Any, ClassVar

import faust
from faust.app.base import BootStrategy
from faust.auth import SASLCredentials, SSLCredentials
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from faust.types.auth import CredentialsT
from mode.utils.objects import cached_property
from mode.utils.queues import FlowControlEvent

from infra.cancellation import no_stray_cancellation
from infra.errors import EXIT_UNAVAILABLE, ExplainedError, end_process
from infra.faust.consumer import GuardedConsumer
from infra.faust.flow import GuardedFlowControl, GuardedStream
from infra.faust.handle import GuardedAgent
from infra.faust.monitor import WorkerMonitor
from infra.faust.producer import PUBLISH_TIMEOUT, GuardedProducer, GuardedTopic
from infra.faust.tables import GuardedTable, GuardedTableManager
from infra.faust.worker_app import STOP_DRAIN, WorkerApp
from infra.kafka.client import KafkaUnavailableError, ssl_context
from infra.kafka.producer import COMPRESSION
from infra.kafka.topics import MissingTopicsError, require_partitions, require_topics
from infra.observability import metrics
from infra.observability.metrics import Role
from infra.observability.probes import ProbesError
from infra.settings import Settings

GUARDED_VERSION = "0.15.3"

SESSION_TIMEOUT = 10.0
"""Session timeout (s): a killed worker's partitions are reassigned after it (brokers refuse less than 6)."""

REBALANCE_TIMEOUT = 60.0
"""Rebalance timeout (s): a member must revoke its partitions within it; several times ``REVOKE_DRAIN``."""

STOP_LIMIT = 10.0
"""Seconds after which a hanging stop ends the process: docker's grace period before SIGKILL."""

FIXED: Mapping[str, Any] = {
    "processing_guarantee": "at_least_once",  # exactly_once crashes without tables, and doubles counts
    "stream_wait_empty": True,  # False commits an unfinished event at SIGTERM
    "topic_allow_declare": False,  # `init` creates all topics: Faust's would have other partition counts
    "topic_disable_leader": True,  # no leader topic: nothing here runs on one worker only
    "web_enabled": False,  # its server listens on 0.0.0.0 and shows the tables
    "consumer_auto_offset_reset": "earliest",  # a new group begins with the first event
    "producer_acks": -1,  # every in-sync replica has a changelog write before its event is committed
    "producer_threaded": False,  # its buffer is not part of flush()
    "table_standby_replicas": 0,  # Faust doesn't use a standby of a memory table at failover
    "key_serializer": "raw",  # topics carry bytes; agents decode, and dead-letter poison pills
    "value_serializer": "raw",
}

logger = logging.getLogger(__name__)


class GuardedTransport(driver.Transport):
    """Makes the guarded consumer and producer."""

    Consumer: ClassVar[Any] = GuardedConsumer
    Producer: ClassVar[Any] = GuardedProducer


class WithoutWeb(BootStrategy):
    """Trap: ``faust worker`` starts the web server, whatever the setting says."""

    enable_web = False


class GuardedApp(WorkerApp):
    """A Faust app made of the guarded parts."""

    BootStrategy = WithoutWeb

    def __init__(
        self,
        name: str,
        *,
        role: Role,
        system_settings: Settings,
        delivery_window: int | None = None,
        read_ahead: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(name, **options)
        self.delivery_window = delivery_window
        self.read_ahead = read_ahead
        self.waiting = {}
        self.worker_monitor = WorkerMonitor(self, role, system_settings)
        self._system_settings = system_settings

    def _new_transport(self) -> GuardedTransport:
        return GuardedTransport(self.conf.broker_consumer, self)

    @cached_property
    def flow_control(self) -> FlowControlEvent:
        return GuardedFlowControl(self)

    def _create_directories(self) -> None:
        self.conf.datadir.mkdir(parents=True, exist_ok=True)
        super()._create_directories()

    async def on_started_init_extra_tasks(self) -> None:
        """Trap: Faust ignores that a stray cancellation ended a task or timer (mode/services.py ``_execute_task``).

        An exception ends the process, as one of an agent does.
        """
        for task in self._app_tasks:
            self.add_future(self._guarded(task()))

    async def _guarded(self, task: Awaitable[Any]) -> None:
        try:
            with no_stray_cancellation():
                await task
        except ExplainedError as error:
            end_process(str(error), EXIT_UNAVAILABLE)
        except Exception as error:  # noqa: BLE001 - Faust would end with exit code 1, and log the error four times
            end_process(f"a task failed: {error!r}", error=error)

    async def on_first_start(self) -> None:
        await super().on_first_start()
        try:
            await self.add_async_context(self.worker_monitor.running())
            await require_topics_of(self, self._system_settings)
        except (KafkaUnavailableError, MissingTopicsError, ProbesError) as error:
            end_process(str(error), EXIT_UNAVAILABLE)

    def on_rebalance_start(self) -> None:
        self.has_assignment = False
        metrics.REBALANCES.inc()
        super().on_rebalance_start()

    async def _on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        await super()._on_partitions_assigned(assigned, generation_id)
        self.has_assignment = True
        self.worker_monitor.note_assignment()

    def _crash(self, reason: BaseException) -> None:
        """A crash inside Faust ends the process; Faust itself would go on with the services that are left."""
        end_process(f"{self.conf.id} crashed: {reason!r}", error=reason)

    async def stop(self) -> None:
        if self.drained_by is None:
            self.drained_by = monotonic() + STOP_DRAIN
            reason = f"{self.conf.id} did not stop in {STOP_LIMIT:.0f} s"
            limit = threading.Timer(STOP_LIMIT - 0.5, end_process, [reason])
            limit.daemon = True
            limit.start()
        await super().stop()

    def _on_rebalance_when_stopped(self) -> None:
        """F2: the consumer stays open until the finished offsets are committed.

        Trap: Faust closes it here, from the wrong thread, when a rebalance comes during a stop, as it does when
        all workers of a group are stopped together.
        """


async def require_topics_of(app: faust.App, settings: Settings) -> None:
    """F9: raise MissingTopicsError unless every topic of ``app`` exists, co-partitioned if the app has a table.

    Trap: Faust waits for missing topics, or creates them with another number of partitions than the inputs of its
    tables, and then loses events. Raises KafkaUnavailableError if no broker can be reached.
    """
    tables = set(app.tables.changelog_topics)
    topics = tables | {name for agent in app.agents.values() for name in agent.get_topic_names()}
    await require_topics(settings, topics)
    if tables:
        await require_partitions(settings, topics, app.conf.topic_partitions)


def credentials_of(settings: Settings) -> CredentialsT | None:
    """The broker credentials in Faust's terms; None for PLAINTEXT."""
    context = ssl_context(settings)
    if settings.kafka_security_protocol.startswith("SASL"):
        password = settings.kafka_sasl_password
        return SASLCredentials(
            username=settings.kafka_sasl_username,
            password=password.get_secret_value() if password else None,
            ssl_context=context,
            mechanism=settings.kafka_sasl_mechanism,
        )
    return SSLCredentials(context=context) if context else None


def create_app(
    name: str,
    *,
    role: Role,
    settings: Settings,
    partitions: int,
    delivery_window: int | None = None,
    read_ahead: int | None = None,
    **overrides: Any,
) -> GuardedApp:
    """A Faust app with every guard; ``name`` is its id and consumer group, ``role`` selects its metrics.

    ``delivery_window`` bounds the in-flight events of a worker. It is divided evenly among the assigned partitions (at
    least one event each), so a slow agent delays no other partition; None: as many as the buffers take, in the order
    of the partitions. ``read_ahead`` is such a window in bytes, for an agent that chooses the order of its events.
    ``overrides`` are Faust settings. Raises RuntimeError if another version of Faust is installed than the guards
    were written for, ValueError if an override would disable a guard.
    """
    if faust.__version__ != GUARDED_VERSION:
        raise RuntimeError(f"faust-streaming {faust.__version__} is installed; the guards need {GUARDED_VERSION}")
    if unsafe := sorted(FIXED.keys() & overrides.keys()):
        raise ValueError(f"settings that the guards depend on can't be overridden: {', '.join(unsafe)}")
    brokers = settings.kafka_brokers or "127.0.0.1:9092"  # an unset variable is an error at start, not at import
    options: dict[str, Any] = {
        "broker": [f"kafka://{address.strip()}" for address in brokers.split(",")],
        "broker_credentials": credentials_of(settings),
        "broker_session_timeout": SESSION_TIMEOUT,
        "broker_heartbeat_interval": SESSION_TIMEOUT / 3,  # two may get lost
        "broker_rebalance_timeout": REBALANCE_TIMEOUT,
        # Longer than the rebalance timeout, or JoinGroup would time out and start again
        "broker_request_timeout": REBALANCE_TIMEOUT + 5,
        # Without a poll for this long aiokafka leaves the group and never rejoins; backpressure during a Cassandra
        # outage must not cause that.
        "broker_max_poll_interval": 7 * 86_400.0,
        "broker_max_poll_records": 5_000,  # aiokafka would decode all that it has fetched, which is compressed
        "consumer_metadata_max_age_ms": 10_000,  # until partitions that `init --partitions` adds are read
        "broker_commit_interval": 1.0,  # bounds the redeliveries after a kill -9
        # Events queued per agent; a full queue blocks the delivery to all agents
        "stream_buffer_maxsize": max(1024, delivery_window or 0),
        "producer_linger": 0.02,  # seconds that changelog writes wait to share a request
        "producer_max_batch_size": 128 * 1024,
        "producer_compression_type": COMPRESSION,
        "producer_request_timeout": PUBLISH_TIMEOUT,
        "store": "memory://",  # tables are recovered from their changelog
        "datadir": settings.data_dir.absolute() / "faust" / name,  # not in the current directory
        "topic_partitions": partitions,
        "autodiscover": False,  # the module that is run imports its agents
        **overrides,
        **FIXED,
    }
    return GuardedApp(
        name,
        role=role,
        system_settings=settings,
        delivery_window=delivery_window,
        read_ahead=read_ahead,
        Agent=GuardedAgent,
        Topic=GuardedTopic,
        Stream=GuardedStream,
        Table=GuardedTable,
        TableManager=GuardedTableManager,
        **options,
    )


def run_worker(app: faust.App) -> int:
    """Run ``app`` until SIGTERM or SIGINT, as ``faust worker`` does, and return the exit code.

    The logging configuration is kept. The process ends with ``EXIT_UNAVAILABLE`` if a dependency is
    missing, and with ``EXIT_FATAL`` if continuing could lose an event.
    """
    # Faust is verbose at INFO; at DEBUG it formats tables at each commit, which costs a third of the throughput
    level = logging.INFO if logger.isEnabledFor(logging.DEBUG) else logging.WARNING
    for name in ("faust", "mode", "aiokafka", __name__):
        logging.getLogger(name).setLevel(level)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    worker = faust.Worker(app, loop=loop, quiet=True, override_logging=False, redirect_stdouts=False)
    worker.spinner = None
    try:
        worker.execute_from_commandline()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
