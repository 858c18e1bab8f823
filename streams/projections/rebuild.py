"""Building the history and the output CSVs anew from the log, or comparing them with it.

The same writes as the live agents make, fed in batches. What is there already is written over with the same, so
readers see it all the time.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiokafka import TopicPartition

from infra.settings import Settings
from streams.events import (
    Event,
    ImageFailed,
    ImageProcessed,
    ImagesSettled,
    OutputCsvRequested,
    RequestCreated,
    RequestFilesRemoved,
    RequestRetried,
    UnreadableEvent,
    decode,
    utc_now,
)
from streams.log_reader import LogReader, partition_of
from streams.projections.history import IMAGE_COLUMNS, IMAGES_PER_BUCKET, History, Runs, milliseconds_of
from streams.projections.output_csv import HistoryLagsError, OutputCsv
from streams.projections.webhooks.images import ImageMessages
from streams.projections.webhooks.store import Deliveries
from streams.topics import Topics

WRITES_IN_FLIGHT = 256
DIFFERENCES_NAMED = 100

OnEvents = Callable[[int, int], None]
"""Told how many events have been read, of how many."""


@dataclass
class Report:
    """What a rebuild, or a comparison, came to."""

    events: int = 0
    differences: list[str] = field(default_factory=list)
    difference_count: int = 0

    def differs(self, what: str) -> None:
        self.difference_count += 1
        if len(self.differences) < DIFFERENCES_NAMED:
            self.differences.append(what)


class LogOfRequests:
    """The events of some topics, about all requests or one, as far as the log goes now."""

    def __init__(self, settings: Settings, request_id: str | None, on_events: OnEvents) -> None:
        self._settings = settings
        self._request_id = request_id
        self._on_events = on_events
        self.read = 0

    async def events(self, *names: str) -> AsyncIterator[list[Event]]:
        """Batch after batch; within a request and a topic in order."""
        async with LogReader.open(self._settings) as reader:
            partitions: list[TopicPartition] = []
            for name in names:
                of_topic = await reader.partitions(name)
                if self._request_id is not None:
                    of_topic = [partition_of(self._request_id.encode(), of_topic)]
                partitions += of_topic
            ends = await reader.ends(partitions)
            total = sum(ends.values())
            seen = 0
            async for records in reader.read(dict.fromkeys(partitions), ends):
                seen += len(records)
                self._on_events(seen, total)
                wanted = (record for record in records if self._is_wanted(record.key))
                batch = [event for record in wanted if (event := _decode(record.value)) is not None]
                self.read += len(batch)
                yield batch

    def _is_wanted(self, key: bytes | None) -> bool:
        return self._request_id is None or key == self._request_id.encode()


async def rebuild_history(
    settings: Settings, history: History, deliveries: Deliveries, request_id: str | None, on_events: OnEvents
) -> Report:
    """Write every row of the history again; rows of ``request_id`` that no event speaks of go.

    Of webhooks first what came of them, and only then what is to be told: a worker that meets a message here must not
    take it for one that was never sent. What is told of images is made from their rows, and so comes last.
    """
    topics = Topics(settings.topic_prefix)
    log = LogOfRequests(settings, request_id, on_events)
    began = utc_now()
    slots = asyncio.Semaphore(WRITES_IN_FLIGHT)
    indexes: set[int] = set()
    image_messages = ImageMessages(history, deliveries)

    async def write(event: Event) -> None:
        async with slots:
            await history.record(event, anew=began)
            if isinstance(event, ImagesSettled):
                await image_messages.record(event)
            else:
                await deliveries.record(event)

    for names in ((topics.webhooks,), (topics.requests, topics.image_results), (topics.progress_tasks,)):
        async for events in log.events(*names):
            async with asyncio.TaskGroup() as writes:
                for event in events:
                    writes.create_task(write(event))
            if request_id is not None:
                indexes |= {event.index for event in events if isinstance(event, ImageProcessed | ImageFailed)}
    report = Report(events=log.read)
    if request_id is not None and indexes:
        for bucket in range(max(indexes) // IMAGES_PER_BUCKET + 2):
            for index in await history.whole_images(request_id, bucket):
                if index not in indexes:
                    await history.forget_image(request_id, index)
                    report.differs(f"{request_id}/{index}: no event speaks of it, and it is gone now")
    return report


async def recall(settings: Settings, history: History, request_id: str, created_at: datetime) -> None:
    """Bring the results of one request that are on the log into the history, in case it missed some."""
    topics = Topics(settings.topic_prefix)
    async with LogReader.open(settings) as reader:
        partition = await reader.partition_of(topics.image_results, request_id.encode())
        start = await reader.offset_at(partition, created_at)
        async for records in reader.read({partition: start}):
            events = [_decode(record.value) for record in records if record.key == request_id.encode()]
            await asyncio.gather(*(history.record(event) for event in events if event is not None))


def _decode(value: bytes | None) -> Event | None:
    try:
        return decode(value)
    except UnreadableEvent:
        return None  # among the dead letters already


async def verify_history(settings: Settings, history: History, request_id: str | None, on_events: OnEvents) -> Report:
    """Compare every image's row, and what was done with each request, with what the log says."""
    topics = Topics(settings.topic_prefix)
    log = LogOfRequests(settings, request_id, on_events)
    latest: dict[str, dict[int, ImageProcessed | ImageFailed]] = {}
    created: dict[str, RequestCreated] = {}
    runs: dict[str, Runs] = {}
    async for events in log.events(topics.image_results, topics.requests):
        for event in events:
            if isinstance(event, ImageProcessed | ImageFailed):
                images = latest.setdefault(event.request_id, {})
                images[event.index] = _later(images.get(event.index), event)
            elif isinstance(event, RequestCreated):
                created[event.request_id] = event
            else:
                runs[event.request_id] = runs.get(event.request_id, Runs()).after(event)
    report = Report(events=log.read)
    for of_request, creation in created.items():
        said, known = runs.get(of_request, Runs()), await history.runs(of_request)
        if known != said:
            report.differs(f"{of_request}: {known}, the log says {said}")
        if not await history.is_listed(creation.owner, creation.time, of_request):
            report.differs(f"{of_request}: it is not in the list of its owner")
    for of_request, images in latest.items():
        rows: dict[int, tuple[Any, ...]] = {}
        for bucket in range(max(images) // IMAGES_PER_BUCKET + 2):
            rows |= await history.whole_images(of_request, bucket)
        for index in sorted(images.keys() | rows.keys()):
            row, image = rows.get(index), images.get(index)
            if image is None:
                report.differs(f"{of_request}/{index}: a row, but no event")
            elif row is None:
                report.differs(f"{of_request}/{index}: an event, but no row")
            elif wrong := _wrong_columns(row, image):
                report.differs(f"{of_request}/{index}: {', '.join(wrong)}")
    return report


def _later(
    before: ImageProcessed | ImageFailed | None, event: ImageProcessed | ImageFailed
) -> ImageProcessed | ImageFailed:
    """The result that counts: of the later attempt; of one attempt the success."""
    if before is None:
        return event
    ranks = [(one.requested_at, isinstance(one, ImageProcessed)) for one in (before, event)]
    return event if ranks[1] >= ranks[0] else before


def _wrong_columns(row: tuple[Any, ...], event: ImageProcessed | ImageFailed) -> list[str]:
    expected = {
        **event.model_dump(),
        "row_number": event.row,
        "settled_at": None,  # a repeat of the same result has another time
        "milliseconds": milliseconds_of(event) if isinstance(event, ImageProcessed) else None,
    }
    wrong = []
    for column, value in zip(IMAGE_COLUMNS, row, strict=True):
        said = expected.get(column)
        if column == "settled_at" or (said is None and column not in ("output_path", "reason")):
            continue
        if column == "reason" and isinstance(event, ImageProcessed):
            continue  # that of an earlier attempt may stand beside a success
        found = value.replace(tzinfo=UTC) if isinstance(value, datetime) else value
        if column == "cells" and value is not None:
            found = tuple(value)
        if found != said:
            wrong.append(f"{column} is {found!r}, the log says {said!r}")
    return wrong


async def rebuild_outputs(
    settings: Settings, output: OutputCsv, request_id: str | None, on_events: OnEvents, *, verify: bool
) -> Report:
    """Write the output CSV of every completed request again, or compare it; nobody is told.

    While a retry is under way there is none: the images of the earlier one are being replaced. Those of requests
    whose files were removed stay away.
    """
    topics = Topics(settings.topic_prefix)
    log = LogOfRequests(settings, request_id, on_events)
    latest: dict[str, OutputCsvRequested] = {}
    runs: dict[str, int] = {}
    removed: set[str] = set()
    async for events in log.events(topics.output_requests, topics.requests):
        for event in events:
            if isinstance(event, RequestFilesRemoved):
                removed.add(event.request_id)
            elif isinstance(event, OutputCsvRequested):
                known = latest.get(event.request_id)
                latest[event.request_id] = event if known is None or event.run >= known.run else known
            elif isinstance(event, RequestRetried):
                runs[event.request_id] = max(runs.get(event.request_id, 0), event.run)
    report = Report(events=log.read)
    for event in latest.values():
        if event.request_id in removed or event.run < runs.get(event.request_id, 0):
            continue
        try:
            if not await output.differs(event):
                continue
            report.differs(f"{event.request_id}: the output CSV is other than what the history says")
            if not verify:
                await output.rewrite(event)
        except HistoryLagsError as gap:
            report.differs(f"{event.request_id}: the history has a gap: {gap}; rebuild that first")
    return report
