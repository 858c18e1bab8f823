"""The progress app: folds events into the table, publishes reactions, starts retries and reconciles requests."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import cast

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from faust.streams import Stream
from faust.types import TP, EventT, StreamT

from infra.errors import end_process
from infra.faust.app import create_app
from infra.faust.resources import Resources
from infra.faust.tables import GuardedTable
from infra.observability.logs import log_about
from infra.settings import settings
from streams.events.base import Event, utc_now
from streams.events.images import ImageFailed, ImageProcessed
from streams.events.maintenance import ProgressRebuildRequested
from streams.events.requests import RequestRetried
from streams.log.consume import read
from streams.log.producer import EventLog
from streams.log.reader import partition_of
from streams.log.topics import PROGRESS_TABLE, Topics
from streams.progress.catch_up import CatchUp
from streams.progress.maintenance import Commands
from streams.progress.passes import Passes, Rows
from streams.progress.published import Published
from streams.progress.rebuild import fold_request, unless_interrupted
from streams.progress.reconciler import RebalancedError, Reconciler
from streams.progress.restore import Restores
from streams.progress.store import apply, fold, orphaned, read_row, read_tallies, row_key, split_key
from streams.request.lifecycle import must_restore
from streams.request.reactions import reactions

logger = structlog.get_logger(__name__)

RETRY_SECONDS = 0.5  # how soon a retry begins
MAX_FOLD_SECONDS = 120.0
"""Maximum duration (s) of an event: the brokers must acknowledge its reactions."""
MAX_READ_SECONDS = 3600.0
"""Maximum duration (s) of an event that rereads a partition of the log."""

topics = Topics(settings().topic_prefix)
app = create_app(topics.group("progress"), role="progress", settings=settings(), partitions=settings().partitions)
_partitions = [TopicPartition(topics.requests, number) for number in range(settings().partitions)]
table = cast(
    "GuardedTable", app.Table(PROGRESS_TABLE, key_type=bytes, value_type=bytes, partitions=settings().partitions)
)


def _partition_of(key: bytes) -> int:
    request_id, _ = split_key(key)
    return int(partition_of(request_id.encode(), _partitions).partition)


@dataclass(frozen=True)
class Progress:
    """Resources shared by the agents and the timers."""

    event_log: EventLog
    reconciler: Reconciler
    commands: Commands
    published: Published


async def _require_ownership(term: int | None, what: str) -> None:
    """Nothing decided before a pause or a rebalance is written after it. ``term``: that of the decision, None: any."""
    await app.lease.wait()
    if term not in (None, app.lease.term):
        raise RebalancedError(f"{what} ended by a rebalance")


async def _open(stack: AsyncExitStack) -> Progress:
    event_log = EventLog(settings(), role="progress", before_write=passes.require_ownership)
    await event_log.start()
    stack.push_async_callback(event_log.stop)
    commands = Commands(settings(), event_log, table, _partition_of, _is_interrupted)
    return Progress(event_log, Reconciler(settings(), event_log), commands, Published())


resources = Resources(_open)


app.worker_monitor.readiness.add_state("kafka writes", resources.problem_of(lambda shared: shared.event_log.problem))


# One agent for all topics: it folds one event after the other, so that no two of them ever read a row, wait, and
# overwrite each other's change. Only a request that is being restored from the log has a task of its own.
@app.agent(app.topic(*topics.of_progress, key_type=bytes, value_type=bytes), name="fold")
async def fold_events(stream: StreamT[bytes]) -> None:
    source = cast("Stream[bytes]", stream).noack()
    async with resources as shared:
        restores = Restores[EventT[bytes]](
            restore=_restore,
            fold=partial(_fold, shared=shared),
            requeue=partial(_requeue, event_log=shared.event_log),
            finish=source.ack,
            on_failure=_end,
        )
        try:
            async for record in source.events():
                log_about(None)
                app.consumer.note_start(record.message, MAX_FOLD_SECONDS)
                event = await read(record, shared.event_log)
                if event is not None:
                    log_about(event)
                    size = len(record.message.value or b"")
                    if event.request_id in restores:
                        app.consumer.note_start(record.message, MAX_READ_SECONDS)
                        await restores.park(record, event, size)
                        continue
                    if isinstance(event, RequestRetried) and must_restore(read_row(event.request_id, table.get), event):
                        app.consumer.note_start(record.message, MAX_READ_SECONDS)
                        await restores.start(record, event, size)
                        continue
                    await _fold(event, shared)
                await source.ack(record)
        finally:
            await restores.stop(app.drain_seconds)


async def _fold(event: Event, shared: Progress) -> None:
    await app.lease.wait()
    folded = fold(event, table.get)
    if isinstance(event, ImageProcessed | ImageFailed):
        for key, tally in folded.changes.items():
            table.defer(key, tally)
    else:
        apply(folded.changes, table)
    if (rebuild := shared.commands.rebuild) is not None:
        rebuild.tap(event)
    if isinstance(event, RequestRetried):
        passes.due.note_retry(event.request_id)
    entry = folded.entry
    due = reactions(event, entry, folded.tally, partial(read_tallies, entry, table.get))
    await shared.published.append_new(due, shared.event_log.append_all)


def _end(error: BaseException) -> None:
    end_process(f"restoring an evicted request failed: {error!r}", error=error)


async def _requeue(event: RequestRetried, event_log: EventLog) -> None:
    """Append the event again: reading the log would outlast a rebalance, and the partition's next owner can do it."""
    await event_log.append(event)
    logger.warning("event requeued because of a rebalance", **event.log_fields())


def _is_interrupted() -> bool:
    return bool(app.rebalancing or app.should_stop)


async def _restore(event: RequestRetried) -> bool:
    """Fold an evicted request from the log into the table, this retry included; False: a rebalance interrupted it."""
    partition = _partition_of(row_key(event.request_id))
    reading = fold_request(settings(), partition, event.request_id, event.created_at)
    rebuilt = await unless_interrupted(reading, _is_interrupted)
    if rebuilt is None:
        return False
    await app.lease.wait()
    # All of its tallies were evicted, and those that a worker killed here has left are overwritten.
    # The row last: a row means that its request is in the table.
    apply(dict(sorted(rebuilt.records.items(), key=lambda record: split_key(record[0])[1] is None)), table)
    logger.info("evicted request restored", request_id=event.request_id, events=rebuilt.events)
    return True


# A separate agent: the live fold goes on while a command is executed.
@app.agent(app.topic(topics.maintenance, key_type=bytes, value_type=bytes), name="maintenance")
async def execute_commands(stream: StreamT[bytes]) -> None:
    async with resources as shared:
        async for record in stream.events():
            app.consumer.note_start(record.message, MAX_READ_SECONDS)
            event = await read(record, shared.event_log)
            # A command in another partition than its own is not the owner's.
            if isinstance(event, ProgressRebuildRequested) and event.partition == record.message.partition:
                require_ownership = partial(_require_ownership, app.lease.term, "rebuild")
                await shared.commands.execute(event, record.message.offset, require_ownership)


class TablePasses:
    """Passes over the table: one at a time, over our partitions that have caught up, each ended by a rebalance."""

    def __init__(self) -> None:
        self.due = Passes(table, _partition_of)
        self._running = asyncio.Lock()  # or two passes would request the same images
        # The term in which a task's pass began; None in the agents, which are drained before a rebalance.
        self._term: ContextVar[int | None] = ContextVar("pass_term", default=None)
        self._catch_up = CatchUp[TP](
            lambda number: [TP(topic, number) for topic in topics.of_progress],
            lambda partitions: app.consumer.end_offsets(partitions),
            lambda partition: app.consumer.first_unfinished(partition),
        )

    async def require_ownership(self) -> None:
        await _require_ownership(self._term.get(), "pass over the table")

    async def begin(self) -> set[int] | None:
        """The partitions of a pass, which belongs to this task; None during a rebalance or a recovery."""
        self._term.set(app.lease.term)
        if app.rebalancing or app.in_recovery:
            return None
        own = {partition.partition for partition in app.consumer.assignment() if partition.topic == topics.requests}
        try:
            return await self._catch_up.among(own)
        except (KafkaError, TimeoutError) as error:
            logger.warning("lag is unknown; no request is reconciled in this pass", error=str(error))
            return set()

    async def reconcile(self, rows: Rows) -> None:
        async with self._running, _until_rebalance("reconciling requests") as shared:
            await shared.reconciler.run_pass(rows, table.get)

    async def evict_orphans(self, own: set[int]) -> None:
        async with _until_rebalance("evicting results without a request") as shared:
            for event in orphaned(list(table.items()), table.get, utc_now()):
                if _partition_of(row_key(event.request_id)) in own:
                    await shared.event_log.append(event)
                    logger.warning("results without a request evicted", request_id=event.request_id)


@asynccontextmanager
async def _until_rebalance(what: str) -> AsyncIterator[Progress]:
    async with resources as shared:
        try:
            yield shared
        except RebalancedError as error:
            logger.warning(str(error))
        except Exception:
            logger.exception(f"{what} failed; retrying in the next pass")


passes = TablePasses()


@app.timer(interval=RETRY_SECONDS)  # type: ignore[untyped-decorator]
async def start_retries() -> None:
    own = await passes.begin()
    if own is not None and (rows := passes.due.next(own)) is not None:
        await passes.reconcile(rows)
        passes.due.note_done(own)


# Often enough to notice a stalled request at about its time.
@app.timer(interval=min(60.0, settings().stall_after / 2))  # type: ignore[untyped-decorator]
async def reconcile_requests() -> None:
    own = await passes.begin()
    if own is not None:
        await passes.reconcile(passes.due.rows_of(own))
        await passes.evict_orphans(own)
