"""Reading the log itself, from a real Kafka."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from aiokafka import TopicPartition

from infra.settings import Settings
from streams.log import reader as log_reader
from streams.log.producer import EventLog
from streams.log.reader import CLOCK_SKEW, LogReader, RecordsDeletedError
from streams.log.topics import Topics
from tests.support.examples import processed, requested


async def results_of(settings: Settings, request_id: str, count: int) -> None:
    log = EventLog(settings)
    await log.start()
    try:
        for index in range(count):
            await log.append(processed(requested(request_id, index)))
    finally:
        await log.stop()


async def test_slow_consumer_of_a_batch_sees_no_timeout(
    settings: Settings, request_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_reader, "SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(log_reader, "BATCH", 1)

    await results_of(settings, request_id, 3)
    async with LogReader.open(settings) as reader:
        place = await reader.partition_of(Topics(settings.topic_prefix).image_results, request_id.encode())
        seen = 0
        async for records in reader.read({place: None}):
            seen += sum(record.key == request_id.encode() for record in records)
            if seen == 1:
                await asyncio.sleep(1.5)
        assert seen == 3


async def test_reader_since_time_finds_records_of_slow_clock(settings: Settings, request_id: str) -> None:
    await results_of(settings, request_id, 1)
    now = datetime.now(UTC)
    async with LogReader.open(settings) as reader:
        place = await reader.partition_of(Topics(settings.topic_prefix).image_results, request_id.encode())
        end = (await reader.ends([place]))[place]
        assert await reader.offset_at(place, now + CLOCK_SKEW / 2) < end
        assert await reader.offset_at(place, now + CLOCK_SKEW * 2) == end
        assert await reader.exact_offset_at(place, now + timedelta(seconds=1)) == end
        assert await reader.offset_at(place, datetime(1970, 1, 1, tzinfo=UTC)) == 0


async def test_reading_empty_partitions_ends_without_cancellation(kafka_settings: Settings) -> None:
    async with LogReader.open(kafka_settings) as reader:
        partitions = await reader.partitions(Topics(kafka_settings.topic_prefix).image_results)
        assert [records async for records in reader.read(dict.fromkeys(partitions))] == []


async def test_reader_fails_where_records_are_gone(settings: Settings) -> None:
    """Going on at the end, as aiokafka does by default, would leave out records in silence."""
    place = TopicPartition(Topics(settings.topic_prefix).requests, 0)
    async with LogReader.open(settings) as reader:
        with pytest.raises(RecordsDeletedError, match="records were deleted"):
            async for _ in reader.read({place: 1_000_000}, {place: 1_000_001}):
                pass
