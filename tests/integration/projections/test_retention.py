"""Files of old requests go, those in use stay, and nothing is done twice."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from infra.settings import Settings
from infra.storage import Storage
from streams.events.base import Event
from streams.events.registry import decode
from streams.events.requests import RequestExpired, RequestRetried
from streams.log.producer import EventLog
from streams.log.reader import LogReader
from streams.projections.retention import Retention
from tests.support.examples import NOON, completed, created

PARTITIONS = (0, 1)


@asynccontextmanager
async def retention(settings: Settings, days: float | None) -> AsyncIterator[tuple[Retention, EventLog, Storage]]:
    settings = settings.model_copy(update={"retention_days": days})
    event_log, storage = EventLog(settings), Storage.of(settings)
    await event_log.start()
    try:
        yield Retention(settings, event_log, storage), event_log, storage
    finally:
        await event_log.stop()


async def removed(settings: Settings) -> list[Event]:
    """Every RequestExpired on the log."""
    events: list[Event] = []
    async with LogReader.open(settings) as reader:
        partitions = await reader.partitions(f"{settings.topic_prefix}.requests")
        async for records in reader.read(dict.fromkeys(partitions)):
            events += [decode(record.value) for record in records]
    return [event for event in events if isinstance(event, RequestExpired)]


def files(settings: Settings, request_id: str) -> list[Path]:
    return [path for path in (settings.data_dir / "storage").rglob("*") if path.is_file() and request_id in str(path)]


@pytest.mark.slow
async def test_retention_removes_old_requests_once_and_keeps_active_ones(kafka_settings: Settings) -> None:
    over, still_running, run_again = str(uuid4()), str(uuid4()), str(uuid4())

    async with retention(kafka_settings, days=1e-9) as (keeper, event_log, storage):
        for request_id in (over, still_running, run_again):
            await event_log.append(created(request_id))
            await storage.put(f"images/{request_id}/0.jpg", b"x", "image/jpeg")
            await storage.put(f"csv/{request_id}/0.csv", b"x", "text/csv")
        for request_id in (over, run_again):
            await event_log.append(completed(request_id))
        await event_log.append(RequestRetried(request_id=run_again, run=1, created_at=NOON))
        await asyncio.sleep(0.01)
        assert await keeper.run_pass(PARTITIONS) == 1
        (event,) = await removed(kafka_settings)
        assert event.request_id == over
        await keeper.remove(over)
        await keeper.remove(over)
        assert await keeper.run_pass(PARTITIONS) == 0, "how far the log was read is remembered"
        await event_log.append(completed(run_again, run=1))
        await asyncio.sleep(0.01)
        assert await keeper.run_pass(PARTITIONS) == 1
        # They may be in different partitions, which are read in no order.
        assert sorted(event.request_id for event in await removed(kafka_settings)) == sorted((over, run_again))
    assert files(kafka_settings, over) == []
    assert len(files(kafka_settings, still_running)) == len(files(kafka_settings, run_again)) == 2
    assert not (kafka_settings.data_dir / "storage" / "images" / over).exists(), "no empty folder stays"


async def test_retention_keeps_recently_finished_requests(kafka_settings: Settings) -> None:
    async with retention(kafka_settings, days=1) as (keeper, event_log, _):
        await event_log.append(completed(str(uuid4())))
        assert await keeper.run_pass(PARTITIONS) == 0
    async with retention(kafka_settings, days=None) as (keeper, event_log, _):
        assert await keeper.run_pass(PARTITIONS) == 0
    assert await removed(kafka_settings) == []


async def test_restarted_retention_repeats_the_same_event(kafka_settings: Settings) -> None:
    request_id = str(uuid4())

    async with retention(kafka_settings, days=1e-9) as (keeper, event_log, _):
        await event_log.append(completed(request_id))
        first = RequestExpired(request_id=request_id)
        await event_log.append(first)  # as far as the one that died had got
        await asyncio.sleep(0.01)
        assert await keeper.run_pass(PARTITIONS) == 0, "it is said already"
        assert [event.id for event in await removed(kafka_settings)] == [first.id]
