"""The progress app: folds events into the table, asks for output CSVs, begins retries, helps what stands still."""

import asyncio
import time
from collections.abc import Iterable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import structlog
from aiokafka import TopicPartition
from faust.types import StreamT

from infra.faust_app import create_app
from infra.logs import log_about
from infra.settings import settings
from streams.consume import read
from streams.event_log import EventLog
from streams.events import Event, ProgressRebuildRequested, ProgressRebuilt, RequestRetried, utc_now
from streams.log_reader import partition_of
from streams.progress.fold import Changes, fold, images_due, must_return, output_due, row_key, split_key
from streams.progress.healer import REQUESTS_AT_ONCE, Healer
from streams.progress.housekeeping import abandoned
from streams.progress.rebuild import about, corrections, fold_partition, unless_interrupted
from streams.resources import Resources
from streams.topics import PROGRESS_TABLE, Topics

log = structlog.get_logger(__name__)

RETRY_SECONDS = 0.5  # how soon a retry begins
LONGEST_FOLD = 120.0
"""Seconds that one event may take: the brokers must acknowledge what follows from it."""
LONGEST_READING = 3600.0
"""Seconds that reading a partition of the log again may take."""

topics = Topics(settings().topic_prefix)
app = create_app(topics.group("progress"), role="progress", settings=settings(), partitions=settings().partitions)
_partitions = [TopicPartition(topics.requests, number) for number in range(settings().partitions)]
table = app.Table(PROGRESS_TABLE, key_type=bytes, value_type=bytes, partitions=settings().partitions)


@dataclass(frozen=True)
class Progress:
    """What the agent and the timer share."""

    event_log: EventLog
    healer: Healer


async def _open(stack: AsyncExitStack) -> Progress:
    event_log = EventLog(settings(), role="progress")
    await event_log.start()
    stack.push_async_callback(event_log.stop)
    return Progress(event_log, Healer(settings(), event_log))


resources = Resources(_open)


# One agent for all topics: their events are folded one after the other, so that no two of them ever read a
# record, wait, and write over each other's change.
@app.agent(app.topic(*topics.of_progress, key_type=bytes, value_type=bytes), name="fold")
async def fold_events(stream: StreamT[bytes]) -> None:
    async with resources as shared:
        async for record in stream.events():
            log_about(None)
            app.consumer.note_start(record.message, LONGEST_FOLD)
            event = await read(record, shared.event_log)
            if isinstance(event, ProgressRebuildRequested | RequestRetried):
                app.consumer.note_start(record.message, LONGEST_READING)
            if event is not None:
                log_about(event)
                await _take(event, shared.event_log)


async def _take(event: Event, event_log: EventLog) -> None:
    if isinstance(event, ProgressRebuildRequested):
        if event.partition in _own_partitions():  # whoever wrote it into another one has not reached its worker
            await _rebuild(event, event_log)
        return
    if must_return(event, table.get) and not await _bring_back(event):
        await _put_off(event, event_log)
        return
    _write(fold(event, table.get))
    if isinstance(event, RequestRetried):
        _retried.add(event.request_id)
    for settled in images_due(event, table.get):
        await event_log.append(settled)
    due = output_due(event, table.get)
    if due is not None:
        await event_log.append(due)


async def _put_off(event: Event, event_log: EventLog, partition: int | None = None) -> None:
    """To the end of the queue: reading the log would outlast a rebalance, and the partition's next owner can do it."""
    await event_log.append(event, partition=partition)
    log.warning("put off for a rebalance", **event.log_fields())


def _is_interrupted() -> bool:
    return bool(app.rebalancing or app.should_stop)


async def _bring_back(event: RequestRetried) -> bool:
    """Put a request that left the table into it again, from the log; this retry is on that, too.

    False: there was no time for that.
    """
    partition = _partition_of(row_key(event.request_id))
    reading = fold_partition(settings(), partition, event.request_id, since=event.created_at)
    rebuilt = await unless_interrupted(reading, _is_interrupted)
    if rebuilt is None:
        return False
    # All of its chunks are gone, and a worker that was killed here has left none that are not written over.
    _write(corrections(rebuilt.records, {}))
    log.info("request is back in the table", request_id=event.request_id, events=rebuilt.events)
    return True


async def _rebuild(event: ProgressRebuildRequested, event_log: EventLog) -> None:
    """Make this partition of the table what the log says; nothing else is folded meanwhile."""
    started = time.monotonic()
    reading = fold_partition(settings(), event.partition, event.only_request)
    rebuilt = await unless_interrupted(reading, _is_interrupted)
    if rebuilt is None:
        await _put_off(event, event_log, event.partition)
        return
    present = {
        key: value
        for key, value in table.items()
        if about(key, event.only_request) and _partition_of(key) == event.partition
    }
    changes = corrections(rebuilt.records, present)
    _write(changes)
    done = ProgressRebuilt(
        request_id=event.request_id,
        rebuild_id=event.rebuild_id,
        partition=event.partition,
        events=rebuilt.events,
        changed=len(changes),
        seconds=round(time.monotonic() - started, 3),
    )
    await event_log.append(done, partition=event.partition)
    log.warning("progress rebuilt", partition=event.partition, events=rebuilt.events, changed=len(changes))


def _write(changes: Changes) -> None:
    for key, value in changes.items():
        if value is None:
            table.pop(key, None)
        else:
            table[key] = value


# Retries that were seen, so that they need not wait for the next look at everything.
_retried: set[str] = set()
_looking = asyncio.Lock()  # or two looks would ask for the same images


_looked_at: set[int] = set()  # partitions; another worker may have had them before, and died over a retry


@app.timer(interval=RETRY_SECONDS)  # type: ignore[untyped-decorator]
async def begin_retries() -> None:
    if app.rebalancing or app.in_recovery:
        return
    own = _own_partitions()
    _looked_at.intersection_update(own)  # one that went and came back has had another owner
    if not own <= _looked_at:
        await _look_after(_own_rows())
        _looked_at.update(own)
    elif _retried:
        await _look_after(_retried_rows())


# As often as needed to notice a standstill at about its time.
@app.timer(interval=min(60.0, settings().stall_after / 2))  # type: ignore[untyped-decorator]
async def look_after_requests() -> None:
    if not app.rebalancing and not app.in_recovery:
        await _look_after(_own_rows())
        await _forget_abandoned()


async def _forget_abandoned() -> None:
    async with resources as shared:
        try:
            own = _own_partitions()
            for event in abandoned(list(table.items()), table.get, utc_now()):
                if _partition_of(row_key(event.request_id)) in own:
                    await shared.event_log.append(event)
                    log.warning("results of no request forgotten", request_id=event.request_id)
        except Exception:
            log.exception("forgetting the results of no request failed; the next look tries again")


async def _look_after(rows: Iterable[tuple[str, bytes]]) -> None:
    async with _looking, resources as shared:
        try:
            await shared.healer.look_after(rows, table.get)
        except Exception:
            log.exception("looking after requests failed; the next look tries again")


def _retried_rows() -> Iterator[tuple[str, bytes]]:
    for _ in range(min(len(_retried), REQUESTS_AT_ONCE)):  # the others in a moment
        request_id = _retried.pop()
        value = table.get(row_key(request_id))
        if value is not None:
            yield request_id, value


def _own_rows() -> Iterator[tuple[str, bytes]]:
    """The rows of requests in this worker's partitions; the table may still hold some of others."""
    own = _own_partitions()
    for key, value in list(table.items()):
        request_id, chunk = split_key(key)
        if chunk is None and _partition_of(key) in own:
            yield request_id, value


def _own_partitions() -> set[int]:
    return {partition.partition for partition in app.consumer.assignment() if partition.topic == topics.requests}


def _partition_of(key: bytes) -> int:
    request_id, _ = split_key(key)
    return int(partition_of(request_id.encode(), _partitions).partition)
