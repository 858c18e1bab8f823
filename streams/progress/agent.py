"""The progress app: folds events into the table, asks for output CSVs, helps requests that stand still."""

import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import structlog
from aiokafka import TopicPartition
from faust.types import StreamT

from infra.faust_app import create_app
from infra.settings import settings
from streams.consume import read
from streams.event_log import EventLog
from streams.events import Event, ProgressRebuildRequested, ProgressRebuilt
from streams.log_reader import partition_of
from streams.progress.fold import Changes, fold, images_due, output_due, split_key
from streams.progress.healer import Healer
from streams.progress.rebuild import about, corrections, fold_partition
from streams.resources import Resources
from streams.topics import PROGRESS_TABLE, Topics

log = structlog.get_logger(__name__)

topics = Topics(settings().topic_prefix)
app = create_app(topics.group("progress"), settings=settings(), partitions=settings().partitions)
_partitions = [TopicPartition(topics.requests, number) for number in range(settings().partitions)]
table = app.Table(PROGRESS_TABLE, key_type=bytes, value_type=bytes, partitions=settings().partitions)


@dataclass(frozen=True)
class Progress:
    """What the agent and the timer share."""

    event_log: EventLog
    healer: Healer


async def _open(stack: AsyncExitStack) -> Progress:
    event_log = EventLog(settings())
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
            event = await read(record, shared.event_log)
            if event is not None:
                await _take(event, shared.event_log)


async def _take(event: Event, event_log: EventLog) -> None:
    if isinstance(event, ProgressRebuildRequested):
        await _rebuild(event, event_log)
        return
    _write(fold(event, table.get))
    for settled in images_due(event, table.get):
        await event_log.append(settled)
    due = output_due(event, table.get)
    if due is not None:
        await event_log.append(due)


async def _rebuild(event: ProgressRebuildRequested, event_log: EventLog) -> None:
    """Make this partition of the table what the log says; nothing else is folded meanwhile."""
    started = time.monotonic()
    rebuilt = await fold_partition(settings(), event.partition, event.only_request)
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


# As often as needed to notice a standstill at about its time.
@app.timer(interval=min(60.0, settings().stall_after / 2))  # type: ignore[untyped-decorator]
async def look_after_requests() -> None:
    if app.rebalancing or app.in_recovery:
        return
    async with resources as shared:
        try:
            await shared.healer.look_after(_own_rows(), table.get)
        except Exception:
            log.exception("looking after requests failed; the next look tries again")


def _own_rows() -> Iterator[tuple[str, bytes]]:
    """The rows of requests in this worker's partitions; the table may still hold some of others."""
    own = {partition.partition for partition in app.consumer.assignment() if partition.topic == topics.requests}
    for key, value in list(table.items()):
        request_id, chunk = split_key(key)
        if chunk is None and _partition_of(key) in own:
            yield request_id, value


def _partition_of(key: bytes) -> int:
    request_id, _ = split_key(key)
    return int(partition_of(request_id.encode(), _partitions).partition)
