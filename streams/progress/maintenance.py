"""Operator commands about the progress table: their execution by the owner of a partition, and the operator's side.

A command is executed at most once. Its execution is first written to the log; a redelivery that finds that there was
ended by the death of a worker, so it fails the command, and the operator decides whether to send another one.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import datetime, timedelta
from uuid import uuid4

import structlog
from aiokafka import TopicPartition

from infra.errors import ExplainedError
from infra.settings import Settings
from streams.events.base import utc_now
from streams.events.maintenance import (
    ProgressRebuildFailed,
    ProgressRebuildRequested,
    ProgressRebuildStarted,
    ProgressRebuilt,
)
from streams.events.registry import decode_or_none
from streams.log.producer import EventLog
from streams.log.reader import LogReader, partition_of
from streams.log.report import OnEvents, Report
from streams.log.topics import Topics
from streams.progress.partition_log import PartitionLog
from streams.progress.rebuild import Rebuild, unless_interrupted
from streams.progress.store import split_key

logger = structlog.get_logger(__name__)

COMMAND_EXPIRES = timedelta(hours=1)
"""Age at which a command is skipped: the operator who sent it waits no longer."""
ATTEMPTS = 2
"""Commands that `replay progress` sends to the owner of a partition before it gives up."""
POLL_SECONDS = 0.2


def is_expired(command: ProgressRebuildRequested, now: datetime) -> bool:
    return now - command.time > COMMAND_EXPIRES


class Commands:
    """Executes the commands to a worker's partitions. ``rebuild``: the one that is under way."""

    def __init__(
        self,
        settings: Settings,
        event_log: EventLog,
        table: MutableMapping[bytes, bytes],
        partition_of_key: Callable[[bytes], int],
        is_interrupted: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._events = event_log
        self._table = table
        self._partition_of_key = partition_of_key
        self._is_interrupted = is_interrupted
        self.rebuild: Rebuild | None = None

    async def execute(
        self, command: ProgressRebuildRequested, offset: int, require_ownership: Callable[[], Awaitable[None]]
    ) -> None:
        """``offset``: of the command's record; ``require_ownership`` is awaited before each write to the table.

        An error of the rebuild fails the command, not the worker.
        """
        if is_expired(command, utc_now()):
            logger.warning("expired command skipped", **command.log_fields())
            return
        async with LogReader.open(self._settings) as reader:
            traces = await _results_of(reader, self._events.topics, command, offset)
            if traces:
                if not any(isinstance(event, ProgressRebuilt | ProgressRebuildFailed) for event in traces):
                    await self._fail(command, "the worker that executed it died")
                return
            await self._events.append(
                ProgressRebuildStarted(**command.model_dump(exclude={"only_request"})), partition=command.partition
            )
            started = time.monotonic()
            self.rebuild = rebuild = Rebuild(
                PartitionLog(self._settings, reader, command.partition, leaves_time=True),
                command.only_request,
                require_ownership,
            )
            try:
                done = await unless_interrupted(self._run(rebuild, command.partition), self._is_interrupted)
            except Exception as error:
                logger.exception("rebuild of progress failed", partition=command.partition)
                await self._fail(command, f"{type(error).__name__}: {error}")
                return
            finally:
                self.rebuild = None
            if done is None:
                await self._fail(command, "interrupted by a rebalance")
                return
        result = ProgressRebuilt(
            **command.model_dump(exclude={"only_request"}),
            events=rebuild.events,
            changed=rebuild.changed,
            seconds=round(time.monotonic() - started, 3),
        )
        await self._events.append(result, partition=command.partition)
        logger.warning("progress rebuilt", partition=command.partition, events=rebuild.events, changed=rebuild.changed)

    async def _run(self, rebuild: Rebuild, partition: int) -> bool:
        keys = [key for key in list(self._table.keys()) if self._partition_of_key(key) == partition]
        async for batch in rebuild.batches(keys):
            await rebuild.correct(batch, self._table)
        return True

    async def _fail(self, command: ProgressRebuildRequested, reason: str) -> None:
        failed = ProgressRebuildFailed(**command.model_dump(exclude={"only_request"}), reason=reason[:1000])
        await self._events.append(failed, partition=command.partition)
        logger.error("rebuild of progress given up", partition=command.partition, reason=reason)


async def _results_of(
    reader: LogReader, topics: Topics, command: ProgressRebuildRequested, offset: int
) -> list[ProgressRebuildStarted | ProgressRebuilt | ProgressRebuildFailed]:
    """The events on the log about a command's execution."""
    return [
        event
        async for records in reader.read({TopicPartition(topics.maintenance, command.partition): offset})
        for event in (decode_or_none(record.value) for record in records)
        if isinstance(event, ProgressRebuildStarted | ProgressRebuilt | ProgressRebuildFailed)
        and event.rebuild_id == command.rebuild_id
    ]


async def request_rebuild(settings: Settings, request_id: str | None, on_events: OnEvents) -> Report:
    """Request a rebuild from the owner of each table partition, and wait for all of them.

    A command that fails is sent once more. Raises ExplainedError.
    """
    topics = Topics(settings.topic_prefix)
    report = Report()
    events = EventLog(settings, role="replay")
    await events.start()
    try:
        async with LogReader.open(settings) as reader:
            partitions = await reader.partitions(topics.maintenance)
            if request_id is not None:
                partitions = [partition_of(request_id.encode(), partitions)]
            positions: dict[TopicPartition, int | None] = {**await reader.ends(partitions)}
            pending: dict[int, str] = {}
            attempts: dict[int, int] = {}

            async def send(partition: int) -> None:
                pending[partition] = rebuild_id = str(uuid4())
                attempts[partition] = attempts.get(partition, 0) + 1
                command = ProgressRebuildRequested(
                    request_id=request_id or rebuild_id,
                    rebuild_id=rebuild_id,
                    partition=partition,
                    only_request=request_id,
                )
                await events.append(command, partition=partition)

            for partition in partitions:
                await send(partition.partition)
            on_events(0, len(partitions))
            async with asyncio.timeout(COMMAND_EXPIRES.total_seconds()):
                while pending:
                    ends = await reader.ends(partitions)
                    async for records in reader.read({tp: positions[tp] for tp in partitions}, ends):
                        for record in records:
                            event = decode_or_none(record.value)
                            if not isinstance(event, ProgressRebuilt | ProgressRebuildFailed):
                                continue
                            if pending.get(event.partition) != event.rebuild_id:
                                continue
                            if isinstance(event, ProgressRebuilt):
                                del pending[event.partition]
                                report.events += event.events
                                on_events(len(partitions) - len(pending), len(partitions))
                            elif attempts[event.partition] < ATTEMPTS:
                                await send(event.partition)
                            else:
                                raise ExplainedError(
                                    f"rebuilding partition {event.partition} of progress failed {ATTEMPTS} times:"
                                    f" {event.reason}; see the log of the progress workers"
                                )
                    positions.update(ends)
                    await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        raise ExplainedError(
            f"rebuilding progress timed out after {COMMAND_EXPIRES.total_seconds():g} s:"
            " check that the progress workers are running"
        ) from None
    finally:
        await events.stop()
    return report


async def verify_progress(settings: Settings, request_id: str | None, on_events: OnEvents, report: Report) -> None:
    """Compare the table, read from its changelog, with the fold of the log, request by request."""
    topics = Topics(settings.topic_prefix)
    async with LogReader.open(settings) as reader:
        partitions = await reader.partitions(topics.progress_changelog)
        if request_id is not None:
            partitions = [partition_of(request_id.encode(), partitions)]
        for done, partition in enumerate(partitions):
            on_events(done, len(partitions))
            table: dict[bytes, bytes] = {}
            async for records in reader.read({partition: None}):
                for record in records:
                    if request_id is not None and split_key(record.key)[0] != request_id:
                        continue
                    if record.value is None:
                        table.pop(record.key, None)
                    else:
                        table[record.key] = record.value
            rebuild = Rebuild(PartitionLog(settings, reader, partition.partition), request_id)
            async for batch in rebuild.batches(table):
                for name in sorted(batch.shadow.requests):
                    for key, value in batch.shadow.corrections(name, table).items():
                        report.differs(f"{key.decode()}: the table differs from the log", table.get(key), value)
            report.events += rebuild.events
        on_events(len(partitions), len(partitions))
