"""The projections app: keeps the history, writes output CSVs, sends webhooks."""

from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

from faust.types import StreamT

from infra.cassandra.session import Session
from infra.faust_app import create_app
from infra.outbound import AllowList, OutboundClient
from infra.settings import parse_webhook_schedule, parse_webhook_secrets, settings
from infra.storage import Storage
from streams.consume import consume
from streams.event_log import EventLog
from streams.events import (
    Event,
    ImagesSettled,
    OutputCsvRequested,
    RequestCompleted,
    RequestRecorded,
    RequestStopped,
    WebhookAttempted,
)
from streams.projections.history import History
from streams.projections.output_csv import OutputCsv
from streams.projections.rebuild import recall
from streams.projections.webhooks.dispatcher import Dispatcher
from streams.projections.webhooks.hosts import CONNECTIONS, PLACES_PER_HOST
from streams.projections.webhooks.images import ImageMessages
from streams.projections.webhooks.outcome import outcome_of
from streams.projections.webhooks.schedule import Schedule
from streams.projections.webhooks.sender import Sender
from streams.projections.webhooks.store import Deliveries
from streams.projections.webhooks.takeover import catch_up
from streams.resources import Resources
from streams.topics import Topics

HISTORY_WRITES_IN_FLIGHT = 256
OUTPUTS_IN_FLIGHT = 4
DELIVERY_WRITES_IN_FLIGHT = 64

topics = Topics(settings().topic_prefix)
app = create_app(topics.group("projections"), settings=settings(), partitions=settings().partitions)


@dataclass(frozen=True)
class Projections:
    """What the agents of this app share."""

    event_log: EventLog
    history: History
    output_csv: OutputCsv
    deliveries: Deliveries
    image_messages: ImageMessages
    dispatcher: Dispatcher


async def _open(stack: AsyncExitStack) -> Projections:
    event_log = EventLog(settings())
    await event_log.start()
    stack.push_async_callback(event_log.stop)
    session = await Session.connect(settings())
    stack.push_async_callback(session.close)
    client = await stack.enter_async_context(
        OutboundClient(AllowList.parse(settings().fetch_allow), limit=CONNECTIONS, limit_per_host=PLACES_PER_HOST)
    )
    history = History(session)
    deliveries = Deliveries(session, settings().partitions)
    secret = settings().webhook_secret
    sender = Sender(
        client,
        parse_webhook_secrets(secret.get_secret_value()) if secret else (),
        Schedule(parse_webhook_schedule(settings().webhook_schedule)),
    )
    return Projections(
        event_log,
        history,
        OutputCsv(
            history,
            Storage.of(settings()),
            event_log,
            settings().data_dir / "spool",
            recall=partial(recall, settings(), history),
        ),
        deliveries,
        ImageMessages(history, deliveries, event_log, recall=partial(recall, settings(), history)),
        Dispatcher(deliveries, sender, event_log, catch_up=partial(catch_up, settings(), deliveries.record)),
    )


resources = Resources(_open)


@app.agent(
    app.topic(topics.requests, topics.image_results, topics.webhooks, key_type=bytes, value_type=bytes),
    name="history",
)
async def keep_history(stream: StreamT[bytes]) -> None:
    async with resources as shared:

        async def on_event(event: Event) -> None:
            await shared.history.record(event)
            if isinstance(event, RequestCompleted | RequestStopped):
                await shared.event_log.append(RequestRecorded(request_id=event.request_id, run=event.run))

        await consume(stream, shared.event_log, on_event, in_flight=HISTORY_WRITES_IN_FLIGHT)


@app.agent(app.topic(topics.output_requests, key_type=bytes, value_type=bytes), name="output-csv")
async def write_output_csvs(stream: StreamT[bytes]) -> None:
    async with resources as shared:

        async def on_event(event: Event) -> None:
            if isinstance(event, OutputCsvRequested):
                await shared.output_csv.publish(event)

        await consume(stream, shared.event_log, on_event, in_flight=OUTPUTS_IN_FLIGHT)


@app.agent(
    app.topic(topics.requests, topics.webhooks, topics.progress_tasks, key_type=bytes, value_type=bytes),
    name="webhooks",
)
async def keep_deliveries(stream: StreamT[bytes]) -> None:
    async with resources as shared:

        async def on_event(event: Event) -> None:
            if isinstance(event, ImagesSettled):
                for due in await shared.image_messages.take(event):
                    shared.dispatcher.expect(due)
                return
            hint = await shared.deliveries.record(event)
            if isinstance(event, WebhookAttempted) and (outcome := outcome_of(event)) is not None:
                await shared.event_log.append(outcome)
            shared.dispatcher.recorded(event, hint)

        await consume(stream, shared.event_log, on_event, in_flight=DELIVERY_WRITES_IN_FLIGHT)


@app.task  # type: ignore[untyped-decorator]
async def send_webhooks() -> None:
    async with resources as shared:
        await shared.dispatcher.run(_own_shards)


def _own_shards() -> set[int]:
    return {partition.partition for partition in app.consumer.assignment() if partition.topic == topics.webhooks}
