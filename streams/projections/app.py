"""The projections app: keeps the history, writes output CSVs, sends webhooks."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TypeAlias

import structlog
from faust.types import StreamT

from infra.cassandra.schema import require_schema
from infra.cassandra.session import Session, check_cassandra
from infra.faust.app import create_app
from infra.faust.resources import Resources
from infra.observability import metrics
from infra.outbound.addresses import AllowList
from infra.outbound.client import OutboundClient
from infra.settings import parse_webhook_schedule, settings
from infra.spool import sweep
from infra.storage import STORAGE_CHECK_INTERVAL, Storage, check_storage
from streams.events.base import Event
from streams.events.progress import ImagesSettled, RequestProjected
from streams.events.requests import (
    OutputCsvRequested,
    RequestCompleted,
    RequestExpired,
    RequestForgotten,
    RequestStopped,
)
from streams.events.webhooks import WebhookAttempted, WebhookDelivered
from streams.log.consume import consume
from streams.log.producer import EventLog
from streams.log.topics import Topics
from streams.projections.forget import forget
from streams.projections.history import History
from streams.projections.image_messages import ImageMessages
from streams.projections.last_resort import LastResort
from streams.projections.output_csv import OutputCsv
from streams.projections.rebuild import recall
from streams.projections.retention import Retention
from streams.request.outcome import outcome_of
from streams.webhooks.dispatcher import Dispatcher
from streams.webhooks.hosts import PERMITS_PER_HOST
from streams.webhooks.schedule import Schedule
from streams.webhooks.sender import Sender
from streams.webhooks.store import Deliveries
from streams.webhooks.takeover import catch_up

# Per partition, so that waiting output CSVs can't block the results that they wait for.
UNDER_WAY_PER_PARTITION = 256
HISTORY_WRITES_IN_FLIGHT = 256
OUTPUTS_IN_FLIGHT = 4
DELIVERY_WRITES_IN_FLIGHT = 64
REMOVALS_IN_FLIGHT = 2
MAX_WRITE_SECONDS = 300.0
"""Maximum duration (s) of the writes of an event: an outage of Cassandra ends the process earlier."""
MAX_OUTPUT_SECONDS = 1800.0
"""Maximum duration (s) of the output CSV of a million images, including the wait for its results."""
MAX_REMOVAL_SECONDS = 3600.0
"""Maximum duration (s) of the removal of a million files."""
PASS_INTERVAL = 600.0  # seconds between two passes over the requests
PARTIAL_KEPT = timedelta(hours=2)  # no write takes that long

logger = structlog.get_logger(__name__)
topics = Topics(settings().topic_prefix)
app = create_app(
    topics.group("projections"),
    role="projections",
    settings=settings(),
    partitions=settings().partitions,
    delivery_window=UNDER_WAY_PER_PARTITION * len(topics.of_projections) * settings().partitions,
)


@dataclass(frozen=True)
class Projections:
    """Resources shared by the agents of this app."""

    event_log: EventLog
    session: Session
    history: History
    output_csv: OutputCsv
    storage: Storage
    retention: Retention
    deliveries: Deliveries
    image_messages: ImageMessages
    dispatcher: Dispatcher
    last_resort: LastResort


OnEvent: TypeAlias = Callable[[Projections, Event], Awaitable[None]]


async def _open(stack: AsyncExitStack) -> Projections:
    event_log = EventLog(settings(), role="projections")
    await event_log.start()
    stack.push_async_callback(event_log.stop)
    session = await Session.connect(settings())
    stack.push_async_callback(session.close)
    await require_schema(session, settings().cassandra_keyspace)
    client = await stack.enter_async_context(
        OutboundClient(AllowList.parse(settings().fetch_allow), limit_per_host=PERMITS_PER_HOST)
    )
    history = History(session)
    metrics.HISTORY_WAITING.read_from(lambda: history.waiting)
    deliveries = Deliveries(session, settings().partitions)
    storage = Storage.of(settings())
    spool = settings().data_dir / "spool"
    await asyncio.to_thread(sweep, spool)
    sender = Sender(client, settings().signing_keys, Schedule(parse_webhook_schedule(settings().webhook_schedule)))
    return Projections(
        event_log,
        session,
        history,
        OutputCsv(history, storage, event_log, spool, recall=partial(recall, settings(), history)),
        storage,
        Retention(settings(), event_log, storage),
        deliveries,
        ImageMessages(history, deliveries, recall=partial(recall, settings(), history)),
        Dispatcher(deliveries, sender, event_log, catch_up=partial(catch_up, settings(), deliveries.record)),
        LastResort(event_log.append),
    )


resources = Resources(_open)


async def _check_cassandra() -> None:
    await check_cassandra(shared.session if (shared := resources.opened) else None)


async def _check_storage() -> None:
    await check_storage(shared.storage if (shared := resources.opened) else None)


app.worker_monitor.readiness.add_state("kafka writes", resources.problem_of(lambda shared: shared.event_log.problem))
app.worker_monitor.readiness.add_check("cassandra", _check_cassandra)
app.worker_monitor.readiness.add_check("storage", _check_storage, interval=STORAGE_CHECK_INTERVAL)


def _agent(name: str, *inputs: str, in_flight: int, max_seconds: float) -> Callable[[OnEvent], OnEvent]:
    """An agent that calls the decorated function for each event of some topics."""

    def add(on_event: OnEvent) -> OnEvent:
        @app.agent(app.topic(*inputs, key_type=bytes, value_type=bytes), name=name)
        async def run(stream: StreamT[bytes]) -> None:
            async with resources as shared:
                attempt = shared.last_resort.of(partial(on_event, shared))
                await consume(stream, shared.event_log, attempt, in_flight=in_flight, max_seconds=max_seconds)

        return on_event

    return add


@_agent(
    "history",
    topics.requests,
    topics.image_results,
    topics.webhooks,
    in_flight=HISTORY_WRITES_IN_FLIGHT,
    max_seconds=MAX_WRITE_SECONDS,
)
async def keep_history(shared: Projections, event: Event) -> None:
    await shared.history.record(event)
    if isinstance(event, RequestCompleted | RequestStopped):
        await shared.event_log.append(
            RequestProjected(request_id=event.request_id, run=event.run, traceparent=event.traceparent)
        )


@_agent("output-csv", topics.output_requests, in_flight=OUTPUTS_IN_FLIGHT, max_seconds=MAX_OUTPUT_SECONDS)
async def write_output_csvs(shared: Projections, event: Event) -> None:
    if isinstance(event, OutputCsvRequested):
        await shared.output_csv.publish(event)


@_agent(
    "webhooks",
    topics.requests,
    topics.webhooks,
    topics.progress,
    in_flight=DELIVERY_WRITES_IN_FLIGHT,
    max_seconds=MAX_OUTPUT_SECONDS,
)
async def keep_deliveries(shared: Projections, event: Event) -> None:
    if isinstance(event, ImagesSettled):
        for due in await shared.image_messages.take(event):
            shared.dispatcher.expect(due)
        return
    hint = await shared.deliveries.record(event)
    if isinstance(event, WebhookAttempted) and (outcome := outcome_of(event)) is not None:
        await shared.event_log.append(outcome)
        metrics.WEBHOOKS_ENDED.labels("delivered" if isinstance(outcome, WebhookDelivered) else "failed").inc()
    shared.dispatcher.recorded(event, hint)


@_agent("retention", topics.requests, in_flight=REMOVALS_IN_FLIGHT, max_seconds=MAX_REMOVAL_SECONDS)
async def remove_files(shared: Projections, event: Event) -> None:
    if isinstance(event, RequestExpired) or (isinstance(event, RequestStopped) and event.expired):
        await shared.retention.remove(event.request_id)
        if isinstance(event, RequestForgotten | RequestStopped):
            await forget(settings(), shared.history, shared.deliveries, event.request_id, event.created_at)


@app.task  # type: ignore[untyped-decorator]
async def send_webhooks() -> None:
    async with resources as shared:
        await shared.dispatcher.run(partial(_own_partitions, topics.webhooks))


@app.timer(interval=min(PASS_INTERVAL, (settings().retention_days or 1.0) * 86_400 / 4))  # type: ignore[untyped-decorator]
async def expire_requests() -> None:
    own = _own_partitions(topics.requests)
    if app.rebalancing or not own:
        return
    async with resources as shared:
        try:
            await shared.retention.run_pass(sorted(own))
            if 0 in own:  # one worker is enough for that
                await shared.storage.sweep(PARTIAL_KEPT)
        except Exception:
            logger.exception("expiring requests failed; retrying in the next pass")


def _own_partitions(topic: str) -> set[int]:
    return {tp.partition for tp in app.consumer.assignment() if tp.topic == topic}
