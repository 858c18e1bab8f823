"""Rebuilds the history and the output CSVs from the log; compares the output CSVs with the history.

It makes the same writes as the live agents, in batches, over the rows that exist: readers see them all the time.
"""

import asyncio
from collections.abc import Iterable, Set
from datetime import datetime

from infra.settings import Settings
from streams.events.base import Event, utc_now
from streams.events.images import ImageFailed, ImageProcessed
from streams.events.progress import ImagesSettled
from streams.events.requests import (
    OutputCsvRequested,
    RequestCompleted,
    RequestCreated,
    RequestForgotten,
    RequestRetried,
)
from streams.log.reader import LogReader
from streams.log.report import OnEvents, Report
from streams.log.request_records import RequestRecords
from streams.log.topics import Topics
from streams.projections.forget import erase, without_urls
from streams.projections.history import History
from streams.projections.image_messages import ImageMessages
from streams.projections.lag import HistoryLagsError
from streams.projections.log_of_requests import LogOfRequests
from streams.projections.output_csv import OutputCsv
from streams.projections.sorted_events import OF_REQUEST
from streams.request.lifecycle import Completion, Lifecycle, Phase, RequestState, Tombstone, advance, evolve
from streams.request.tally import chunk_count
from streams.webhooks.store import Deliveries

WRITES_IN_FLIGHT = 256


async def rebuild_history(
    settings: Settings, history: History, deliveries: Deliveries, request_id: str | None, on_events: OnEvents
) -> Report:
    """Write every row of the history again; with ``request_id``, also delete its orphan rows once it has ended.

    Delivery outcomes are replayed before messages: otherwise a dispatcher would see a message without attempts and
    send it again. Messages about images are made from the rows of the images, and so come last.
    """
    topics = Topics(settings.topic_prefix)
    log = LogOfRequests(settings, request_id, on_events)
    began = utc_now()
    under_way, forgotten = await _under_way(settings, request_id)
    slots = asyncio.Semaphore(WRITES_IN_FLIGHT)
    indexes: set[int] = set()
    image_messages = ImageMessages(history, deliveries)

    async def write(event: Event) -> None:
        async with slots:
            if (forgetting := forgotten.get(event.request_id)) is not None:
                await erase(history, deliveries, [event], forgetting)
                if not isinstance(event, ImageProcessed | ImageFailed | ImagesSettled):
                    await history.record(without_urls(event), rebuilt_at=began)
                return
            # Later writes of live agents about an unfinished request may be dated before this rebuild, and must win.
            await history.record(event, rebuilt_at=None if event.request_id in under_way else began)
            if isinstance(event, ImagesSettled):
                await image_messages.record(event)
            else:
                await deliveries.record(event)

    for names in ((topics.webhooks,), (topics.requests, topics.image_results), (topics.progress,)):
        async for events in log.events(*names):
            async with asyncio.TaskGroup() as writes:
                for event in events:
                    writes.create_task(write(event))
            if request_id is not None:
                indexes |= _indexes_of(events)
    report = Report(events=log.read)
    if request_id is not None and indexes and request_id not in under_way:
        for index in sorted(await _orphan_rows(history, log, request_id, indexes)):
            await history.delete_image(request_id, index)
            report.differs(f"{request_id}/{index}: a row without an event, deleted")
    return report


async def _under_way(settings: Settings, request_id: str | None) -> tuple[Set[str], dict[str, RequestForgotten]]:
    """The requests whose current run has no end on the log, and those that are forgotten."""
    forgotten: dict[str, RequestForgotten] = {}
    lives: dict[str, Lifecycle] = {}
    async for events in LogOfRequests(settings, request_id, lambda _, __: None).events(
        Topics(settings.topic_prefix).requests
    ):
        for event in events:
            if isinstance(event, RequestForgotten):
                forgotten[event.request_id] = event
            # Requests that have ended are not remembered: only a retry, not an event about an earlier run, counts.
            if event.request_id in lives or isinstance(event, RequestCreated | RequestRetried):
                life = advance(lives.pop(event.request_id, Lifecycle()), event)
                if not life.is_ended:
                    lives[event.request_id] = life
    return lives.keys(), forgotten


async def _orphan_rows(history: History, log: LogOfRequests, request_id: str, indexes: set[int]) -> set[int]:
    """The rows of a request, of images other than ``indexes``, that the log doesn't know of.

    It is read again after them: agents go on meanwhile, and a result is on the log before its row is there.
    """
    rows: set[int] = set()
    for bucket in range(chunk_count(max(indexes) + 1) + 1):
        rows |= (await history.whole_images(request_id, bucket)).keys() - indexes
    if rows:
        async for events in log.events(log.topics.image_results):
            rows -= _indexes_of(events)
    return rows


def _indexes_of(events: list[Event]) -> set[int]:
    return {event.index for event in events if isinstance(event, ImageProcessed | ImageFailed)}


async def recall(settings: Settings, history: History, request_id: str, created_at: datetime) -> None:
    """Apply the creation and the results of one request that are on the log to the history, in case it missed some.

    Their writes win over a later rebuild or deletion.
    """
    topics = Topics(settings.topic_prefix)
    began = utc_now()
    async with LogReader.open(settings) as reader:
        records = RequestRecords(reader, request_id)
        for topic in (topics.requests, topics.image_results):
            await records.add(topic, created_at)
        async for events in records.events():
            recalled = [event for event in events if isinstance(event, RequestCreated | ImageProcessed | ImageFailed)]
            await asyncio.gather(*(history.record(event, rebuilt_at=began) for event in recalled))


async def rebuild_outputs(
    settings: Settings,
    output: OutputCsv,
    request_id: str | None,
    on_events: OnEvents,
    report: Report,
    *,
    verify: bool,
) -> None:
    """Write the output CSV of every completed request again, or compare it; no event is published.

    While a retry is under way there is none: the images of the earlier run are being replaced.
    """
    log = LogOfRequests(settings, request_id, on_events)
    async for events in log.sorted_events(log.topics.requests):
        for of_request, _ in events.requests():
            due = _output_of(events.of(of_request, OF_REQUEST))
            try:
                if due is None or not await output.differs(due):
                    continue
                report.differs(f"{of_request}: the output CSV differs from the history")
                if not verify:
                    await output.rewrite(due)
            except HistoryLagsError as gap:
                report.differs(f"{of_request}: the history has a gap: {gap}; rebuild that first")
    report.events += log.read


def _output_of(events: Iterable[Event]) -> OutputCsvRequested | None:
    """What the output CSV is written from, if a request has one by the events about it."""
    state: RequestState | Tombstone | None = None
    done: RequestCompleted | None = None  # the event of the state's completion
    for event in events:
        state = evolve(state, event)
        completion = state.completion if isinstance(state, RequestState) else None
        if isinstance(event, RequestCompleted) and completion == Completion.of(event):
            done = event
    if done is None or not isinstance(state, RequestState) or state.phase is not Phase.COMPLETED:
        return None
    return OutputCsvRequested(
        **done.model_dump(exclude={"output_csv_url", "output_csv_path", "failures"}),
        time=done.time,
    )
