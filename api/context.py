"""Shared resources of the handlers: opened at start-up, closed at shutdown."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from aiohttp import web
from aiokafka.errors import KafkaError

from infra.cassandra.schema import require_schema
from infra.cassandra.session import Session, check_cassandra
from infra.kafka.topics import require_partitions, require_topics
from infra.observability.readiness import CHECK_INTERVAL, NotReady, Readiness
from infra.outbound.addresses import AllowList
from infra.settings import Settings
from infra.spool import sweep
from infra.storage import STORAGE_CHECK_INTERVAL, Storage, check_storage
from streams.log.producer import EventLog
from streams.log.topics import Topics
from streams.progress.view import ProgressView, StaleViewError
from streams.projections.history.queries import HistoryQueries
from streams.request.lifecycle import RequestState, evolve
from streams.request.status import Status
from streams.webhooks.store import Deliveries

DELIVERY_TIMEOUT = 8.0
"""Seconds until an event that Kafka doesn't acknowledge is a 503; with the wait for the view below 15."""


@dataclass(frozen=True)
class Context:
    """The API's connections and read models."""

    settings: Settings
    events: EventLog
    view: ProgressView
    session: Session
    history: HistoryQueries
    deliveries: Deliveries
    storage: Storage
    fetch_allow: AllowList
    readiness: Readiness

    async def status(self, request_id: str, *, fresh: bool = True) -> Status | None:
        """The status of a request: from the progress table, or from the history once it is evicted.

        If neither has it, the view catches up with Kafka first, so that a status right after the 202 is never a 404
        at any API process. Raises StaleViewError when catching up takes too long; with ``fresh``, also for a known
        request if the view is stale.
        """
        if fresh:
            self.view.require_fresh()
        if (status := self.view.get(request_id)) is not None:
            return status
        if (found := await self.history.request(request_id)) is None:
            return await self.view.get_fresh(request_id)
        if (status := self.view.get(request_id)) is not None:
            return status  # a retry restored it meanwhile
        state, tally = found
        retried = self.view.retry_of(request_id)
        after = evolve(state, retried) if retried is not None else state
        return Status.of(after, (tally,)) if isinstance(after, RequestState) else None


CONTEXT = web.AppKey("context", Context)


@asynccontextmanager
async def open_context(settings: Settings) -> AsyncIterator[Context]:
    """Connect to Kafka, Cassandra and the storage. Raises ExplainedError naming the one that is unavailable."""
    topics = Topics(settings.topic_prefix)
    async with AsyncExitStack() as stack:
        await require_topics(settings, topics.configs())
        await require_partitions(settings, topics.keyed_by_request, settings.partitions)
        storage = Storage.of(settings)
        await storage.check()
        await asyncio.to_thread(sweep, settings.data_dir / "spool")
        session = await Session.connect(settings)
        stack.push_async_callback(session.close)
        await require_schema(session, settings.cassandra_keyspace)
        events = EventLog(settings, role="api", delivery_timeout=DELIVERY_TIMEOUT)
        await events.start()
        stack.push_async_callback(events.stop)
        view = ProgressView(settings)
        stack.push_async_callback(view.stop)
        await view.start()
        readiness = _readiness(events, view, session, storage)
        await stack.enter_async_context(readiness.checking())
        yield Context(
            settings,
            events,
            view,
            session,
            HistoryQueries(session),
            Deliveries(session, settings.partitions),
            storage,
            AllowList.parse(settings.fetch_allow),
            readiness,
        )


def _readiness(events: EventLog, view: ProgressView, session: Session, storage: Storage) -> Readiness:
    async def ask_kafka() -> None:
        try:
            await view.ask_ends()
        except KafkaError as error:
            raise NotReady("unavailable", str(error)) from None

    async def ask_view() -> None:
        try:
            await view.catch_up(CHECK_INTERVAL)
        except StaleViewError as error:
            raise NotReady("lags behind Kafka", str(error)) from None

    readiness = Readiness()
    readiness.add_state("kafka writes", lambda: events.problem)
    readiness.add_check("kafka", ask_kafka)
    readiness.add_check("progress view", ask_view)
    readiness.add_check("cassandra", partial(check_cassandra, session))
    readiness.add_check("storage", partial(check_storage, storage), interval=STORAGE_CHECK_INTERVAL)
    return readiness
