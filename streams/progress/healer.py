"""Asks for images again: those of a retry, and those of a request that stands still.

For the latter the log is read first, for results that were missed.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from datetime import datetime, timedelta

import structlog
from aiokafka import TopicPartition
from aiokafka.structs import RecordMetadata

from infra import metrics
from infra.settings import Settings
from streams.event_log import EventLog
from streams.events import (
    Event,
    ImageFailed,
    ImageProcessed,
    ImageRequested,
    ImagesRequestedAgain,
    OutputCsvRequested,
    RequestExpired,
    RequestStopped,
    UnreadableEvent,
    decode,
    utc_now,
)
from streams.log_reader import LogReader, Record
from streams.progress.fold import Read, RequestRow
from streams.progress.housekeeping import Limits, Stalled, Unasked, task_for

log = structlog.get_logger(__name__)

REQUESTS_AT_ONCE = 20
WRITES_IN_FLIGHT = 2000
RECORDS_AT_ONCE = 200  # before whatever else the worker has to do gets its turn
REASON = "lost"


class Healer:
    """Looks after the requests of the partitions that this worker has."""

    def __init__(self, settings: Settings, event_log: EventLog) -> None:
        self._settings = settings
        self._log = event_log
        self._topics = event_log.topics
        self._limits = Limits(
            timedelta(seconds=settings.stall_after), settings.heal_limit, timedelta(seconds=settings.progress_grace)
        )
        # When retries were begun: the table knows it a while later, when there is much to fold before.
        self._begun: dict[tuple[str, int], datetime] = {}

    async def look_after(self, rows: Iterable[tuple[str, bytes]], read: Read) -> None:
        """Do what there is to do about some of the requests; the next look goes on with the others."""
        now = utc_now()
        self._begun = {key: at for key, at in self._begun.items() if now - at <= self._limits.stall_after}
        found: list[Stalled | Unasked] = []
        for request_id, value in rows:
            match task_for(request_id, value, read, now, self._limits):
                case Unasked() as task if (request_id, task.row.run) in self._begun:
                    pass
                case Stalled() | Unasked() as task:
                    found.append(task)
                    if len(found) >= REQUESTS_AT_ONCE:
                        break
                case OutputCsvRequested() | RequestStopped() | RequestExpired() as event:
                    await self._log.append(event)
                case None:
                    pass
            await asyncio.sleep(0)
        if found:
            async with LogReader.open(self._settings) as reader:
                for request in found:
                    if isinstance(request, Unasked):
                        await self._begin(request, reader)
                    else:
                        await self._help(request, reader)

    async def _begin(self, request: Unasked, reader: LogReader) -> None:
        """Ask for the images of a retry. Done again after a kill, it asks with the same ids."""
        missing = set(request.missing)
        asking = _Asking(self._log, request.row)
        async for _, image in self._images_of(request.request_id, request.row, reader):
            if image.index in missing:
                missing.discard(image.index)
                await asking.ask(image)
        await self._fail_unheard_of(request.request_id, request.row, missing)
        await asking.finish(request.request_id, heal=0)
        self._begun[(request.request_id, request.row.run)] = utc_now()

    async def _help(self, request: Stalled, reader: LogReader) -> None:
        missing = set(request.missing)
        missing -= await self._repeat_results(request, missing, reader)
        if not missing:
            return
        handled = await reader.committed(self._topics.group("compress"), self._topics.image_requests)
        lost, queued = await self._requests_of(request, missing, reader, handled)
        # What was never asked for can't be asked for again.
        await self._fail_unheard_of(request.request_id, request.row, missing - lost.keys() - queued)
        if request.give_up:
            await self._give_up(request, lost)
        elif lost:  # the others still wait for their turn
            asking = _Asking(self._log, request.row)
            for image in lost.values():
                await asking.ask(image)
            await asking.finish(request.request_id, heal=request.row.heals + 1)

    async def _repeat_results(self, request: Stalled, missing: set[int], reader: LogReader) -> set[int]:
        """Results that are on the log and were missed: written again, so that every reader gets them again."""
        partition = await reader.partition_of(self._topics.image_results, request.request_id.encode())
        start = await reader.offset_at(partition, request.row.created_at)

        found: dict[int, ImageProcessed | ImageFailed] = {}
        async for records in reader.read({partition: start}):
            for record in records:
                event = _event_of(record)
                if (
                    isinstance(event, ImageProcessed | ImageFailed)
                    and event.request_id == request.request_id
                    and event.index in missing
                    and (isinstance(event, ImageProcessed) or event.attempt >= request.row.run)
                ):
                    found[event.index] = event
        for event in found.values():
            await self._log.append(event)
        if found:
            metrics.RESULTS_REPEATED.inc(len(found))
            log.warning("results read again", request_id=request.request_id, images=len(found))
        return set(found)

    async def _give_up(self, request: Stalled, lost: dict[int, ImageRequested]) -> None:
        """End the request: an image without a result has failed."""
        detail = f"no result, although it was asked for {request.row.heals} times more"
        for image in lost.values():
            await self._log.append(ImageFailed.of(of_run(image, request.row), reason=REASON, detail=detail))
        if lost:
            metrics.GIVEN_UP.inc(len(lost))
            log.error("images given up", request_id=request.request_id, images=len(lost))

    async def _fail_unheard_of(self, request_id: str, row: RequestRow, indexes: set[int]) -> None:
        """An image that the log knows nothing about has failed."""
        for index in sorted(indexes):
            await self._log.append(
                ImageFailed(
                    request_id=request_id,
                    index=index,
                    attempt=row.run,
                    row=index,
                    position=0,
                    serial="?",
                    product_name="?",
                    input_url="",
                    owner=row.owner,
                    traceparent=row.traceparent,
                    requested_at=row.requested_at,
                    reason=REASON,
                    detail="the log doesn't say what was asked for",
                )
            )
        if indexes:
            metrics.GIVEN_UP.inc(len(indexes))
            log.error("images unheard of", request_id=request_id, images=len(indexes))

    async def _requests_of(
        self, request: Stalled, missing: set[int], reader: LogReader, handled: dict[TopicPartition, int]
    ) -> tuple[dict[int, ImageRequested], set[int]]:
        """What was asked for and compress is done with, and so has lost; and the indexes that it has yet to see."""
        lost: dict[int, ImageRequested] = {}
        queued: set[int] = set()
        async for record, image in self._images_of(request.request_id, request.row, reader):
            if image.index in missing:
                place = TopicPartition(record.topic, record.partition)
                # One of an earlier run that still waits is no answer to this one: it may be passed over as cancelled.
                if image.attempt >= request.row.run and record.offset >= handled.get(place, 0):
                    queued.add(image.index)
                else:
                    lost[image.index] = image
        return {index: image for index, image in lost.items() if index not in queued}, queued

    async def _images_of(
        self, request_id: str, row: RequestRow, reader: LogReader
    ) -> AsyncIterator[tuple[Record, ImageRequested]]:
        """Every time that an image of the request was asked for."""
        topic, key = self._topics.image_requests, f"{request_id}/".encode()
        starts = {TopicPartition(topic, number): first for number, (first, _) in row.image_offsets.items()}
        ends = {TopicPartition(topic, number): last + 1 for number, (_, last) in row.image_offsets.items()}
        async for records in reader.read(starts, ends):
            for number, record in enumerate(records):
                # Between the first and the last there may be many of other requests.
                if record.key is not None and record.key.startswith(key):
                    event = _event_of(record)
                    if isinstance(event, ImageRequested):
                        yield record, event
                if number % RECORDS_AT_ONCE == 0:
                    await asyncio.sleep(0)


class _Asking:
    """Asks for images in the run of their request, and remembers where on the topic that is."""

    def __init__(self, event_log: EventLog, row: RequestRow) -> None:
        self._log = event_log
        self._row = row
        self._offsets = dict(row.image_offsets)
        self._pending: deque[asyncio.Future[RecordMetadata]] = deque()
        self._count = 0

    async def ask(self, image: ImageRequested) -> None:
        self._pending.append(await self._log.enqueue(of_run(image, self._row)))
        self._count += 1
        if len(self._pending) > WRITES_IN_FLIGHT:
            await self._note()

    async def finish(self, request_id: str, *, heal: int) -> None:
        """Say so, once the brokers have all that was asked for."""
        while self._pending:
            await self._note()
        again = ImagesRequestedAgain(
            request_id=request_id,
            run=self._row.run,
            heal=heal,
            missing=self._count,
            image_offsets=self._offsets,
            traceparent=self._row.traceparent,
        )
        await self._log.append(again)
        metrics.ASKED_AGAIN.labels("lost" if heal else "retry").inc(self._count)
        metrics.REQUESTS_HEALED.inc(heal > 0)
        log.warning("images requested again", request_id=request_id, images=self._count, run=again.run, heal=heal)

    async def _note(self) -> None:
        written = await self._pending.popleft()
        first, last = self._offsets.get(written.partition, (written.offset, written.offset))
        self._offsets[written.partition] = (min(first, written.offset), max(last, written.offset))


def of_run(image: ImageRequested, row: RequestRow) -> ImageRequested:
    """The same image, asked for in the run that its request is in: the same event each time."""
    return image.model_copy(update={"attempt": row.run, "time": row.requested_at, "owner": row.owner})


def _event_of(record: Record) -> Event | None:
    try:
        return decode(record.value)
    except UnreadableEvent:
        return None  # among the dead letters already
