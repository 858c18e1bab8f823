"""Reading a request's log from a real Kafka: only what is about the request, and never without end."""

from collections.abc import Sequence
from uuid import uuid4

from api.contract.models import RequestLog
from api.requests.timeline import read_log
from infra.settings import Settings
from streams.events.base import Event, utc_now
from streams.log.producer import EventLog
from streams.request.status import Status
from tests.support.examples import created, failed, processed, requested


async def log_of(settings: Settings, events: Sequence[Event], status: Status, **limit: int) -> RequestLog:
    """Write the events and read the log of the request."""
    event_log = EventLog(settings)
    await event_log.start()
    try:
        for event in events:
            await event_log.append(event)
    finally:
        await event_log.stop()
    return await read_log(settings, status, **limit)


def status_of(request_id: str, **fields: object) -> Status:
    now = utc_now()
    return Status.model_validate(
        {
            "request_id": request_id, "status": "processing", "total": 3, "succeeded": 0, "failed": 0,
            "input_bytes": 0, "output_bytes": 0, "created_at": now, "updated_at": now, **fields,
        }
    )  # fmt: skip


async def test_log_leaves_out_events_of_other_requests(settings: Settings, request_id: str) -> None:
    status = status_of(request_id)
    events: list[Event] = []
    for each in (str(uuid4()), request_id, str(uuid4()), str(uuid4())):
        image = requested(each)
        events += [created(each), processed(image)]
    log = await log_of(settings, events, status)
    assert sorted(entry.event for entry in log.entries) == ["ImageResults", "RequestCreated"]
    assert [entry.results.succeeded for entry in log.entries if entry.results] == [1]
    assert log.whole


async def test_reading_stops_at_record_limit_and_says_so(settings: Settings, request_id: str) -> None:
    status = status_of(request_id, status="completed")
    events = [failed(requested(request_id, index=index)) for index in range(20)]
    log = await log_of(settings, events, status, max_records=15)
    assert sum(entry.results.failed for entry in log.entries if entry.results) <= 15
    assert not log.whole


async def test_empty_log_is_a_valid_answer(settings: Settings, request_id: str) -> None:
    assert (await log_of(settings, [], status_of(request_id))).entries == []
