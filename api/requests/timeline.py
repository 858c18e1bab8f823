"""Log of a request: its timeline, read from the Kafka topics on demand."""

import asyncio
from dataclasses import replace
from http import HTTPStatus

from aiohttp import web
from aiokafka.errors import KafkaError

from api.context import CONTEXT
from api.contract.models import LogEntry, RequestLog, ResultSums
from api.contract.routes import Response, Route
from api.http.api_keys import OWNER
from api.http.paging import json_response
from api.http.problems import unavailable, unavailable_on
from api.http.quotas import ConcurrencyLimit, Turns, share_of
from api.requests.status import status_of
from infra.kafka.client import KafkaUnavailableError
from infra.settings import Settings
from streams.events.base import UnreadableEvent
from streams.log.reader import LogReader, Record
from streams.log.request_records import RequestRecords, logged
from streams.log.topics import Topics
from streams.request.sentences import counted
from streams.request.status import Status
from streams.request.timeline import EventLine, Interval, Timeline

MAX_CONCURRENT_READS = 2  # per API process: each buffers some megabytes of records and loads the broker
MAX_CALLERS = 16  # reading and waiting, per owner
MAX_RECORDS = 200_000  # records scanned per topic and response, including those of other requests
READ_TIMEOUT = 20.0  # seconds
MAX_INTERVALS = 60
MAX_ENTRIES = 1000
# Order of entries with equal times: an event may carry the time of the event that caused it.
_ORDER = {name: rank for rank, name in enumerate(("RequestCreated", "ImageResults", "OutputCsvRequested"))}

READS = web.AppKey("log_reads", Turns)


def read_turns(settings: Settings) -> Turns:
    """The turns of the owners at reading logs: one flood of them must not keep the others waiting."""
    share = share_of(MAX_CONCURRENT_READS, settings)
    callers = ConcurrencyLimit(2**31, MAX_CALLERS, lambda reason: unavailable(f"too many readings of logs: {reason}"))
    return Turns(MAX_CONCURRENT_READS, share, callers)


async def request_log(request: web.Request) -> web.Response:
    """``GET /api/requests/{id}/log``: its events, oldest first, image results summed over intervals."""
    status = await status_of(request)
    with (
        unavailable_on(KafkaUnavailableError, KafkaError, reason="cannot read the request's log: Kafka is unavailable"),
        unavailable_on(TimeoutError, reason=f"reading the request's log timed out after {READ_TIMEOUT:g} s"),
    ):
        async with asyncio.timeout(READ_TIMEOUT), request.app[READS].turn(request[OWNER]):
            log = await read_log(request.app[CONTEXT].settings, status)
    return json_response(log, headers={"Cache-Control": "no-store"})


async def read_log(settings: Settings, status: Status, *, max_records: int = MAX_RECORDS) -> RequestLog:
    """Read a request's log; scans at most ``max_records`` records per topic."""
    timeline = Timeline(with_repeats=False, max_intervals=MAX_INTERVALS, max_lines=MAX_ENTRIES)
    topics = Topics(settings.topic_prefix)
    # Bounds the scan: a finished request has no results after its last change.
    settled = None if status.status == "processing" else status.updated_at
    async with LogReader.open(settings) as reader:
        records_of = RequestRecords(reader, status.request_id, max_records)
        for topic in (*topics.of_progress, topics.output_requests):
            await records_of.add(topic, status.created_at, settled if topic == topics.image_results else None)
        async for records in records_of.read():
            await asyncio.to_thread(_add, timeline, records)
    return log_of(timeline, is_whole=records_of.complete)


def log_of(timeline: Timeline, *, is_whole: bool = True) -> RequestLog:
    entries = [*map(_event, timeline.events), *(entry for each in timeline.intervals if (entry := _results(each)))]
    entries.sort(key=lambda entry: (entry.until or entry.time, _ORDER.get(entry.event, len(_ORDER))))
    return RequestLog(entries=entries, whole=is_whole and not timeline.left_out)


def _add(timeline: Timeline, records: list[Record]) -> None:
    for record in records:
        try:
            event = logged(record)
        except UnreadableEvent:
            timeline.left_out.append("a record on the dead-letter topic")
        else:
            timeline.add(replace(event, at=event.event.time))  # ordered by event time, not record time


def _event(line: EventLine) -> LogEntry:
    return LogEntry(time=line.first, event=line.name, text=line.text)


def _results(interval: Interval) -> LogEntry | None:
    """The entry of an interval's results, or None without any."""
    groups = [group for name in ("ImageProcessed", "ImageFailed") if (group := interval.groups.get(name))]
    if not groups:
        return None
    counts = {group.name: group.count for group in groups}
    sums = ResultSums(
        succeeded=counts.get("ImageProcessed", 0),
        failed=counts.get("ImageFailed", 0),
        input_bytes=sum(group.input_bytes for group in groups),
        output_bytes=sum(group.output_bytes for group in groups),
    )
    parts = [f"{counted(sums.succeeded, 'image')} compressed"] if sums.succeeded else []
    if sums.failed:
        parts.append(f"{counted(sums.failed, 'image')} failed")
    return LogEntry(
        time=min(group.first for group in groups),
        until=max(group.last for group in groups),
        event="ImageResults",
        text=", ".join(parts),
        results=sums,
    )


def routes() -> list[Route]:
    return [
        Route(
            "GET",
            "/api/requests/{request_id}/log",
            request_log,
            tag="Requests",
            summary="Read the log of a request",
            description="The request's events from Kafka, oldest first. Image results are summed over time intervals.",
            responses={HTTPStatus.OK: Response("The log", {"application/json": RequestLog})},
        )
    ]
