"""Helps requests that stand still: reads the log for what was missed, asks again for what is not on it."""

import asyncio
from collections.abc import Iterable
from datetime import timedelta

import structlog
from aiokafka import TopicPartition

from infra.settings import Settings
from streams.event_log import EventLog
from streams.events import (
    Event,
    ImageFailed,
    ImageProcessed,
    ImageRequested,
    ImagesRequestedAgain,
    UnreadableEvent,
    decode,
    utc_now,
)
from streams.log_reader import LogReader, Record
from streams.progress.fold import Read
from streams.progress.housekeeping import Limits, Stalled, task_for

log = structlog.get_logger(__name__)

REQUESTS_AT_ONCE = 20
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

    async def look_after(self, rows: Iterable[tuple[str, bytes]], read: Read) -> None:
        """Do what there is to do about some of the requests; the next look goes on with the others."""
        now = utc_now()
        stalled: list[Stalled] = []
        for request_id, value in rows:
            task = task_for(request_id, value, read, now, self._limits)
            if isinstance(task, Stalled):
                stalled.append(task)
                if len(stalled) >= REQUESTS_AT_ONCE:
                    break
            elif task is not None:
                await self._log.append(task)
            await asyncio.sleep(0)
        if stalled:
            async with LogReader.open(self._settings) as reader:
                for request in stalled:
                    await self._help(request, reader)

    async def _help(self, request: Stalled, reader: LogReader) -> None:
        missing = set(request.missing)
        missing -= await self._repeat_results(request, missing, reader)
        if not missing:
            return
        handled = await reader.committed(self._topics.group("compress"), self._topics.image_requests)
        asked, queued = await self._requests_of(request, missing, reader, handled)
        # What was never asked for can't be asked for again.
        unheard_of = missing - asked.keys() - queued
        await self._give_up(request, asked if request.give_up else {}, unheard_of)
        if request.give_up or not asked:
            return  # the others still wait for their turn
        offsets = dict(request.row.image_offsets)
        for image in asked.values():
            written = await self._log.append(image)
            first, last = offsets.get(written.partition, (written.offset, written.offset))
            offsets[written.partition] = (min(first, written.offset), max(last, written.offset))
        heal = request.row.heals + 1
        await self._log.append(
            ImagesRequestedAgain(request_id=request.request_id, heal=heal, missing=len(asked), image_offsets=offsets)
        )
        log.warning("images requested again", request_id=request.request_id, images=len(asked), heal=heal)

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
            log.warning("results read again", request_id=request.request_id, images=len(found))
        return set(found)

    async def _give_up(self, request: Stalled, asked: dict[int, ImageRequested], unheard_of: set[int]) -> None:
        """End the request: an image without a result has failed, even one that the log knows nothing about."""
        detail = f"no result, although it was asked for {request.row.heals} times more"
        failures = [ImageFailed.of(image, reason=REASON, detail=detail) for image in asked.values()]
        failures += [
            ImageFailed(
                request_id=request.request_id,
                index=index,
                attempt=request.row.run,
                row=index,
                position=0,
                serial="?",
                product_name="?",
                input_url="",
                requested_at=request.row.created_at,
                reason=REASON,
                detail="the log doesn't say what was asked for",
            )
            for index in sorted(unheard_of)
        ]
        for failure in failures:
            await self._log.append(failure)
        if failures:
            log.error("images given up", request_id=request.request_id, images=len(failures))

    async def _requests_of(
        self, request: Stalled, missing: set[int], reader: LogReader, handled: dict[TopicPartition, int]
    ) -> tuple[dict[int, ImageRequested], set[int]]:
        """What was asked for and compress is done with, and so has lost; and the indexes that it has yet to see."""
        starts = {
            TopicPartition(self._topics.image_requests, number): first
            for number, (first, _) in request.row.image_offsets.items()
        }
        ends = {
            TopicPartition(self._topics.image_requests, number): last + 1
            for number, (_, last) in request.row.image_offsets.items()
        }
        lost: dict[int, ImageRequested] = {}
        queued: set[int] = set()
        async for records in reader.read(starts, ends):
            for record in records:
                event = _event_of(record)
                if (
                    isinstance(event, ImageRequested)
                    and event.request_id == request.request_id
                    and event.index in missing
                ):
                    place = TopicPartition(record.topic, record.partition)
                    if record.offset >= handled.get(place, 0):
                        queued.add(event.index)
                    else:
                        lost[event.index] = event
        return {index: event for index, event in lost.items() if index not in queued}, queued


def _event_of(record: Record) -> Event | None:
    try:
        return decode(record.value)
    except UnreadableEvent:
        return None  # among the dead letters already
