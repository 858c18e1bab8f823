"""What happened to a request and when, read from the topics themselves."""

import asyncio
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
from streams.request.status import Status
from streams.request_records import RequestRecords
from streams.topics import Topics

READINGS_AT_ONCE = 2  # in one API process: each holds some megabytes of records, and the broker busy
MOST_RECORDS = 200_000  # looked at in one topic for one answer; other requests' records are among them
SECONDS = 20.0

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
    # The log goes on for ever; no result that came later than the last change concerns this request.
    settled = None if status.status == "processing" else status.updated_at
    async with LogReader.open(settings) as reader:
        records_of = RequestRecords(reader, status.request_id, most_records)
        for topic in (*topics.of_progress, topics.output_requests):
            await records_of.add(topic, status.created_at, settled if topic == topics.image_results else None)
        async for records in records_of.read():
            await asyncio.to_thread(_add, summary, records)
    if not records_of.whole:
        summary.leave_out()
    return summary.log()


def _add(summary: LogSummary, records: list[Record]) -> None:
    for record in records:
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
