"""Writing to a real Kafka: what was acknowledged is there, in its place, and what was not is an error."""

import asyncio
import json
import os
import socket
import time

import pytest
from aiokafka.errors import KafkaError

from infra.cli.dead_letters import DeadLetter
from infra.kafka.client import KafkaUnavailableError
from infra.settings import Settings
from streams.events.base import HEADERS, Event
from streams.events.registry import decode
from streams.events.webhooks import WebhookDelivered
from streams.log.producer import EventLog
from streams.log.topics import Topics
from tests.support.examples import completed, created, failed, output_requested, processed, requested
from tests.support.topic_reader import events_in, read_topic, records_in


async def test_acknowledged_event_is_on_its_topic_under_its_key(kafka_settings: Settings, request_id: str) -> None:
    image = requested(request_id)
    told = WebhookDelivered(request_id=request_id, webhook_id="msg_1", attempts=1)
    events: list[Event] = [
        created(request_id), image, processed(image), failed(image), output_requested([failed(image)]),
        completed(request_id), told,
    ]  # fmt: skip
    topics = Topics(kafka_settings.topic_prefix)

    log = EventLog(kafka_settings)
    await log.start()
    try:
        for event in events:
            place = await log.append(event)
            topic = getattr(topics, event.topic)
            assert place.topic == topic
            (record,) = [
                record
                for record in await records_in(kafka_settings, topic)
                if (record.partition, record.offset) == (place.partition, place.offset)
            ]
            assert decode(record.value) == event
            assert record.key == event.key
            assert dict(record.headers) == {
                "content-type": b"application/cloudevents+json",
                "traceparent": event.own_traceparent.encode(),
                "worker": f"shrinkstream@{socket.gethostname()}-{os.getpid()}".encode(),
            }
    finally:
        await log.stop()


@pytest.mark.slow
async def test_other_clients_read_compressed_events(kafka_settings: Settings, request_id: str) -> None:
    events = [processed(requested(request_id, index=index)) for index in range(1000)]
    log = EventLog(kafka_settings)
    await log.start()
    try:
        await log.append_all(events)
    finally:
        await log.stop()
    statistics: list[str] = []
    topic = Topics(kafka_settings.topic_prefix).image_results
    values = await asyncio.to_thread(
        lambda: [record.value() for record in read_topic(str(kafka_settings.kafka_brokers), topic, statistics)]
    )
    assert {event.encode() for event in events} <= set(values)
    received = sum(broker["rxbytes"] for broker in json.loads(statistics[-1])["brokers"].values())
    assert received < sum(map(len, values)) / 4


async def test_request_has_the_same_partition_in_every_topic(kafka_settings: Settings) -> None:
    """So that one progress worker sees it all."""

    log = EventLog(kafka_settings)
    await log.start()
    try:
        seen = set()
        for number in range(10):
            name = f"request-{number}"
            image = requested(name, number)
            told = WebhookDelivered(request_id=name, webhook_id="msg_1", attempts=1)
            events = (created(name), processed(image), output_requested([failed(image)]), completed(name), told)
            (partition,) = {(await log.append(event)).partition for event in events}
            seen.add(partition)
        assert seen == {0, 1}, "requests are spread"
    finally:
        await log.stop()


@pytest.mark.slow
async def test_concurrent_events_are_written_once_and_in_order(kafka_settings: Settings, request_id: str) -> None:
    events = [processed(requested(request_id, index)) for index in range(2000)]

    log = EventLog(kafka_settings)
    await log.start()
    try:
        for acknowledged in [await log.enqueue(event) for event in events]:
            await acknowledged
    finally:
        await log.stop()
    assert await events_in(kafka_settings, log.topics.image_results) == events


async def test_stopping_the_log_writes_in_flight_events(kafka_settings: Settings, request_id: str) -> None:
    log = EventLog(kafka_settings)
    await log.start()
    under_way = [await log.enqueue(processed(requested(request_id, index))) for index in range(100)]
    await log.stop()
    assert all(future.done() and future.exception() is None for future in under_way)
    assert len(await events_in(kafka_settings, log.topics.image_results)) == 100


async def test_event_refused_by_the_brokers_is_an_error(kafka_settings: Settings, request_id: str) -> None:
    log = EventLog(kafka_settings)
    await log.start()
    try:
        with pytest.raises(KafkaError):
            await log.append(requested(request_id, cells=("x" * 2_000_000,)))
        await log.append(requested(request_id))
    finally:
        await log.stop()
    assert await events_in(kafka_settings, log.topics.image_requests) == [requested(request_id)]


@pytest.mark.parametrize("value", [b"\xff\x00", b"", b"{}"])
async def test_dead_letter_keeps_record_its_offset_and_the_error(kafka_settings: Settings, value: bytes) -> None:
    log = EventLog(kafka_settings)
    await log.start()
    try:
        await log.dead_letter(value, b"key", topic="requests", partition=3, offset=17, error="not JSON: ü")
    finally:
        await log.stop()
    (record,) = await records_in(kafka_settings, log.topics.dead_letters)
    assert (record.value, record.key) == (value, b"key")
    assert {name: content.decode() for name, content in record.headers} == {
        "dead-letter-topic": "requests",
        "dead-letter-partition": "3",
        "dead-letter-offset": "17",
        "dead-letter-error": "not JSON: ü",
    }


async def test_dead_letter_of_maximum_size_is_truncated(kafka_settings: Settings) -> None:
    log = EventLog(kafka_settings)
    await log.start()
    try:
        await log.dead_letter(b"x" * 1_048_488, b"key", topic="requests", partition=3, offset=17, error="not JSON")
    finally:
        await log.stop()
    (record,) = await records_in(kafka_settings, log.topics.dead_letters)
    letter = DeadLetter.of(record)
    assert (letter.origin, letter.truncated_from, letter.key) == (("requests", 3, 17), 1_048_491, None)
    assert letter.value == b"x" * 1_000_000


async def test_record_without_value_and_key_becomes_dead_letter(kafka_settings: Settings) -> None:
    log = EventLog(kafka_settings)
    await log.start()
    try:
        await log.dead_letter(None, None, topic="requests", partition=0, offset=0, error="no value")
    finally:
        await log.stop()
    (record,) = await records_in(kafka_settings, log.topics.dead_letters)
    assert not record.value
    assert record.key is None


@pytest.mark.slow
async def test_unreachable_kafka_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.kafka.producer.REQUEST_TIMEOUT_MS", 1000)

    async def fails_at(address: str) -> None:
        log = EventLog(Settings(kafka_brokers=address))
        async with asyncio.timeout(60):
            with pytest.raises(KafkaUnavailableError, match=f"^Kafka can't be reached at {address}: "):
                await log.start()
            await log.stop()

    await fails_at("127.0.0.1:1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        await fails_at(f"127.0.0.1:{silent.getsockname()[1]}")


async def test_missing_brokers_error_names_the_setting() -> None:
    with pytest.raises(KafkaUnavailableError, match="SHRINKSTREAM_KAFKA_BROKERS"):
        await EventLog(Settings()).start()


async def test_record_timestamp_is_its_write_time(kafka_settings: Settings, request_id: str) -> None:
    # The events of these examples are years away: replays by time go by the record's.
    log = EventLog(kafka_settings)
    await log.start()
    try:
        place = await log.append(created(request_id))
    finally:
        await log.stop()
    assert abs(place.timestamp / 1000 - time.time()) < 60


async def test_batched_events_equal_events_written_one_by_one(kafka_settings: Settings, request_id: str) -> None:
    images = [requested(request_id, index) for index in range(3000)]
    topic = Topics(kafka_settings.topic_prefix).image_requests

    log = EventLog(kafka_settings)
    await log.start()
    try:
        batches = await log.start_batches()
        for start in range(0, len(images), 500):
            for image in images[start : start + 500]:
                await asyncio.to_thread(batches.add, image)
            await batches.send()
        offsets = await batches.finish()
        records = await records_in(kafka_settings, topic)
        assert sorted(record.value for record in records) == sorted(image.encode() for image in images)
        for record in records:
            headers = dict(record.headers)
            assert headers.pop("traceparent").decode() == decode(record.value).own_traceparent
            assert headers.pop("worker").decode() == f"shrinkstream@{socket.gethostname()}-{os.getpid()}"
            assert headers == dict(HEADERS)
        for partition, (first, last) in offsets.items():
            assert [record.offset for record in records if record.partition == partition] == [*range(first, last + 1)]
        for image in images[:20]:
            (batched,) = (record for record in records if record.key == image.key)
            assert (await log.append(image)).partition == batched.partition
    finally:
        await log.stop()


@pytest.mark.slow
async def test_concurrent_batch_writers_do_not_starve_each_other(kafka_settings: Settings) -> None:
    async def write(log: EventLog, number: int) -> int:
        batches = await log.start_batches()
        for index in range(40):
            batches.add(requested(f"request-{number}", index))
        return sum(last - first + 1 for first, last in (await batches.finish()).values())

    log = EventLog(kafka_settings)
    await log.start()
    try:
        written = await asyncio.gather(*(write(log, number) for number in range(200)))
        # Others' records may stand between one's own, so a range may be longer than what one has written.
        assert min(written) >= 40
        topic = Topics(kafka_settings.topic_prefix).image_requests
        assert len(await records_in(kafka_settings, topic)) == 200 * 40
    finally:
        await log.stop()


async def test_many_events_keep_their_order(kafka_settings: Settings, request_id: str) -> None:
    log = EventLog(kafka_settings)
    await log.start()
    try:
        results = [processed(requested(request_id, index)) for index in range(1500)]
        await log.append_all(results)
        assert await events_in(kafka_settings, log.topics.image_results, request_id) == results
    finally:
        await log.stop()


async def test_refused_event_is_not_written(kafka_settings: Settings, request_id: str) -> None:
    refused = asyncio.Event()

    async def refuse_later() -> None:
        if refused.is_set():
            raise PermissionError("another worker owns the partition")

    log = EventLog(kafka_settings, before_write=refuse_later)
    await log.start()
    try:
        await log.append(completed(request_id))
        refused.set()
        with pytest.raises(PermissionError):
            await log.append_all([created(request_id)])
        assert await events_in(kafka_settings, log.topics.requests, request_id) == [completed(request_id)]
    finally:
        await log.stop()
