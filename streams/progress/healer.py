"""Helps requests that stand still: reads the log for what was missed, asks again for what is not on it."""

import asyncio
from collections.abc import Callable, Iterable
from datetime import timedelta

import structlog
from aiokafka import TopicPartition

from infra.kafka import committed_offsets
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
from streams.log_reader import LogReader
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
        handled = await committed_offsets(self._settings, self._topics.group("compress"))
        lost = await self._requests_of(request, missing, reader, handled)
        if not lost:
            return  # they still wait for their turn
        if request.give_up:
            for image in lost:
                await self._log.append(
                    ImageFailed.of(
                        image, reason=REASON, detail=f"no result after asking {request.row.heals} times again"
                    )
                )
            log.error("images given up", request_id=request.request_id, images=len(lost))
            return
        offsets = dict(request.row.image_offsets)
        for image in lost:
            written = await self._log.append(image)
            first, last = offsets.get(written.partition, (written.offset, written.offset))
            offsets[written.partition] = (min(first, written.offset), max(last, written.offset))
        heal = request.row.heals + 1
        await self._log.append(
            ImagesRequestedAgain(request_id=request.request_id, heal=heal, missing=len(lost), image_offsets=offsets)
        )
        log.warning("images requested again", request_id=request.request_id, images=len(lost), heal=heal)

    async def _repeat_results(self, request: Stalled, missing: set[int], reader: LogReader) -> set[int]:
        """Results that are on the log and were missed: written again, so that every reader gets them again."""
        partition = await reader.partition_of(self._topics.image_results, request.request_id.encode())
        start = await reader.offset_at(partition, request.row.created_at)

        def wanted(event: Event) -> bool:
            return (
                isinstance(event, ImageProcessed | ImageFailed)
                and event.request_id == request.request_id
                and event.index in missing
                and (isinstance(event, ImageProcessed) or event.attempt >= request.row.run)
            )

        found = await _find(reader, {partition: start}, None, wanted)
        for event in found:
            await self._log.append(event)
        if found:
            log.warning("results read again", request_id=request.request_id, images=len(found))
        return {event.index for event in found if isinstance(event, ImageProcessed | ImageFailed)}

    async def _requests_of(
        self, request: Stalled, missing: set[int], reader: LogReader, handled: dict[TopicPartition, int]
    ) -> list[ImageRequested]:
        """The ImageRequested of missing images that compress is done with, and so has lost."""
        topic = self._topics.image_requests
        starts, ends = {}, {}
        for number, (first, last) in request.row.image_offsets.items():
            partition = TopicPartition(topic, number)
            end = min(last + 1, handled.get(partition, 0))
            if end > first:
                starts[partition], ends[partition] = first, end

        def wanted(event: Event) -> bool:
            return (
                isinstance(event, ImageRequested) and event.request_id == request.request_id and event.index in missing
            )

        found = await _find(reader, starts, ends, wanted)
        latest = {event.index: event for event in found if isinstance(event, ImageRequested)}
        return list(latest.values())


async def _find(
    reader: LogReader,
    starts: dict[TopicPartition, int],
    ends: dict[TopicPartition, int] | None,
    wanted: Callable[[Event], bool],
) -> list[Event]:
    found = []
    async for records in reader.read(starts, ends):
        for record in records:
            try:
                event = decode(record.value)
            except UnreadableEvent:
                continue  # among the dead letters already
            if wanted(event):
                found.append(event)
    return found
