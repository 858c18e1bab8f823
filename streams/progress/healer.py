"""Asks for images again: those of a retry, and those of a request that stands still.

For the latter the log is read first, for results that were missed.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
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
    decode_or_none,
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
        # When runs of requests were seen to of late. The table knows of a retry that was begun a while later, when
        # there is much to fold before; and what only waits for compress must not take the turn of another each time.
        self._seen_to: dict[tuple[str, int], datetime] = {}

    async def look_after(self, rows: Iterable[tuple[str, bytes]], read: Read) -> None:
        """Do what there is to do about the requests; of those that need the log read, the next look sees to more."""
        now = utc_now()
        self._seen_to = {key: at for key, at in self._seen_to.items() if now - at <= self._limits.stall_after}
        found: list[Stalled | Unasked] = []
        for request_id, value in rows:
            match task_for(request_id, value, read, now, self._limits):
                case Stalled() | Unasked() as task:
                    if (request_id, task.row.run) not in self._seen_to and len(found) < REQUESTS_AT_ONCE:
                        found.append(task)
                case OutputCsvRequested() | RequestStopped() | RequestExpired() as event:
                    await self._log.append(event)
                case None:
                    pass
            await asyncio.sleep(0)
        if found:
            async with LogReader.open(self._settings) as reader:
                for request in sorted(found, key=lambda task: isinstance(task, Stalled)):  # somebody waits for a retry
                    try:
                        await self._see_to(request, reader)
                    except Exception:  # the others need not suffer from what is wrong with this one
                        log.exception(
                            "a request can't be helped now; a later look tries", request_id=request.request_id
                        )

    async def _see_to(self, request: Stalled | Unasked, reader: LogReader) -> None:
        key = request.request_id, request.row.run
        if isinstance(request, Unasked):
            await self._begin(request, reader)
            self._seen_to[key] = utc_now()
        else:
            self._seen_to[key] = utc_now()  # also if that fails: then it is the others' turn
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

    async def _help(self, request: Stalled, reader: LogReader) -> None:
        # Asked before the results are read: what compress is done with by now has its result among them.
        handled = await reader.committed(self._topics.group("compress"), self._topics.image_requests)
        missing = set(request.missing)
        missing -= await self._results_of(request, missing, reader)
        if not missing:
            return
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

    async def _results_of(self, request: Stalled, missing: set[int], reader: LogReader) -> set[int]:
        """The indexes that have a result on the log.

        One that was missed is written again, so that every reader gets it again; to one that is behind what progress
        has committed, the fold comes by itself.
        """
        partition = await reader.partition_of(self._topics.image_results, request.request_id.encode())
        start = await reader.offset_at(partition, request.row.created_at)
        read_to = (await reader.committed(self._topics.group("progress"), partition.topic))[partition]

        key, row = request.request_id.encode(), request.row
        present: set[int] = set()
        repeated: dict[int, type[Event]] = {}
        writes = _Writes(self._log)
        async for records in reader.read({partition: start}):
            for number, record in enumerate(records):
                if record.key == key:
                    event = decode_or_none(record.value)
                    if (
                        isinstance(event, ImageProcessed | ImageFailed)
                        and event.index in missing
                        and (isinstance(event, ImageProcessed) or event.attempt >= row.run)
                    ):
                        present.add(event.index)
                        if record.offset < read_to and repeated.get(event.index) is not type(event):
                            repeated[event.index] = type(event)
                            await writes.add(event)
                if number % RECORDS_AT_ONCE == 0:
                    await asyncio.sleep(0)
        await writes.finish()
        if repeated:
            metrics.RESULTS_REPEATED.inc(len(repeated))
            log.warning("results read again", request_id=request.request_id, images=len(repeated))
        return present

    async def _give_up(self, request: Stalled, lost: dict[int, ImageRequested]) -> None:
        """End the request: an image without a result has failed."""
        detail = f"no result, although it was asked for {request.row.heals} times more"
        writes = _Writes(self._log)
        for image in lost.values():
            await writes.add(ImageFailed.of(of_run(image, request.row), reason=REASON, detail=detail))
        await writes.finish()
        if lost:
            metrics.GIVEN_UP.inc(len(lost))
            log.error("images given up", request_id=request.request_id, images=len(lost))

    async def _fail_unheard_of(self, request_id: str, row: RequestRow, indexes: set[int]) -> None:
        """An image that the log knows nothing about has failed."""
        writes = _Writes(self._log)
        for index in sorted(indexes):
            await writes.add(
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
        await writes.finish()
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
        present = await reader.ends(await reader.partitions(topic))
        said = {TopicPartition(topic, number): offsets for number, offsets in row.image_offsets.items()}
        # What an event says of offsets may be of another cluster: nobody waits for what isn't there.
        starts: dict[TopicPartition, int | None] = {
            place: first for place, (first, _) in said.items() if place in present
        }
        ends = {place: min(said[place][1] + 1, present[place]) for place in starts}
        async for records in reader.read(starts, ends):
            for number, record in enumerate(records):
                # Between the first and the last there may be many of other requests.
                if record.key is not None and record.key.startswith(key):
                    event = decode_or_none(record.value)
                    if isinstance(event, ImageRequested):
                        yield record, event
                if number % RECORDS_AT_ONCE == 0:
                    await asyncio.sleep(0)


class _Writes:
    """Many events on their way to the log, a bounded number at a time; ``written`` is told of each."""

    def __init__(self, event_log: EventLog, written: Callable[[RecordMetadata], None] = lambda _: None) -> None:
        self._log = event_log
        self._written = written
        self._pending: deque[asyncio.Future[RecordMetadata]] = deque()

    async def add(self, event: Event) -> None:
        self._pending.append(await self._log.enqueue(event))
        if len(self._pending) > WRITES_IN_FLIGHT:
            self._written(await self._pending.popleft())

    async def finish(self) -> None:
        """Wait until the brokers have them all."""
        while self._pending:
            self._written(await self._pending.popleft())


class _Asking:
    """Asks for images in the run of their request, and remembers where on the topic that is."""

    def __init__(self, event_log: EventLog, row: RequestRow) -> None:
        self._log = event_log
        self._row = row
        self._offsets = dict(row.image_offsets)
        self._writes = _Writes(event_log, self._note)
        self._count = 0

    async def ask(self, image: ImageRequested) -> None:
        await self._writes.add(of_run(image, self._row))
        self._count += 1

    async def finish(self, request_id: str, *, heal: int) -> None:
        """Say so, once the brokers have all that was asked for."""
        await self._writes.finish()
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

    def _note(self, written: RecordMetadata) -> None:
        first, last = self._offsets.get(written.partition, (written.offset, written.offset))
        self._offsets[written.partition] = (min(first, written.offset), max(last, written.offset))


def of_run(image: ImageRequested, row: RequestRow) -> ImageRequested:
    """The same image, asked for in the run that its request is in: the same event each time."""
    return image.model_copy(update={"attempt": row.run, "time": row.requested_at, "owner": row.owner})
