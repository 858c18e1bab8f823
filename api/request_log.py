"""What happened to a request and when, read from the topics themselves."""

import asyncio
from datetime import timedelta
from http import HTTPStatus

from aiohttp import web
from aiokafka.errors import KafkaError

from api.context import CONTEXT
from api.log_summary import LogSummary, RequestLog
from api.paging import json_answer
from api.problems import unavailable
from api.routes import Answer, Route
from api.status import REQUEST_ID, REQUEST_PROBLEMS, status_of
from infra.kafka import KafkaUnavailableError
from infra.settings import Settings
from streams.events import UnreadableEvent, decode
from streams.log_reader import LogReader, Record
from streams.status import Status
from streams.topics import Topics

READINGS_AT_ONCE = 2  # in one API process: each holds some megabytes of records, and the broker busy
MOST_RECORDS = 200_000  # looked at in one topic for one answer; other requests' records are among them
SECONDS = 20.0
CLOCK_SKEW = timedelta(minutes=1)  # between the machines whose clocks date the records

READINGS = web.AppKey("log_readings", asyncio.Semaphore)


async def request_log(request: web.Request) -> web.Response:
    """``GET /api/requests/{id}/log``: its events, oldest first, the results of its images summed up."""
    status = await status_of(request)
    try:
        async with asyncio.timeout(SECONDS), request.app[READINGS]:
            log = await read_log(request.app[CONTEXT].settings, status)
    except (KafkaUnavailableError, KafkaError):
        raise unavailable("Kafka doesn't answer") from None
    except TimeoutError:
        raise unavailable("the log could not be read in time") from None
    return json_answer(log, headers={"Cache-Control": "no-store"})


async def read_log(settings: Settings, status: Status, *, most_records: int = MOST_RECORDS) -> RequestLog:
    """What the topics say of a request; at most ``most_records`` of each are looked at."""
    summary = LogSummary()
    topics = Topics(settings.topic_prefix)
    key = status.request_id.encode()
    async with LogReader.open(settings) as reader:
        starts, ends = {}, {}
        for topic in (*topics.of_progress, topics.output_requests):
            partition = await reader.partition_of(topic, key)
            start = await reader.offset_at(partition, status.created_at - CLOCK_SKEW)
            end = (await reader.ends([partition]))[partition]
            if topic == topics.image_results and status.status != "processing":
                # The log goes on for ever; no result that came later than the last change concerns this request.
                end = min(end, await reader.offset_at(partition, status.updated_at + CLOCK_SKEW))
            if end - start > most_records:
                end = start + most_records
                summary.leave_out()
            starts[partition], ends[partition] = start, end
        async for records in reader.read(starts, ends):
            await asyncio.to_thread(_add, summary, records, key)
    return summary.log()


def _add(summary: LogSummary, records: list[Record], key: bytes) -> None:
    for record in records:
        if record.key != key:
            continue
        try:
            summary.add(decode(record.value))
        except UnreadableEvent:
            summary.leave_out()  # whoever acts on the record has put it among the dead letters


def routes() -> list[Route]:
    return [
        Route(
            "GET",
            "/api/requests/{request_id}/log",
            request_log,
            tag="Requests",
            summary="Tell what happened when",
            description="The events that tell of the request, as they stand on its topics, the oldest first. The"
            " results of its images are summed over intervals.",
            parameters=(REQUEST_ID,),
            answers={HTTPStatus.OK: Answer("What happened", {"application/json": RequestLog})},
            problems=REQUEST_PROBLEMS,
        )
    ]
