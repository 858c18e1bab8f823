"""The status view on a real Kafka: complete, never stale in silence, and it never waits for ever."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.structs import OffsetAndMetadata

from infra.devserver.kafka import EmbeddedKafka
from infra.kafka.client import KafkaUnavailableError
from infra.kafka.topics import create_topics
from infra.settings import Settings
from streams.events.base import Event
from streams.events.progress import ProgressEvicted, RequestProjected
from streams.events.requests import RequestCancelled, RequestRetried
from streams.log.producer import EventLog
from streams.log.reader import RecordsDeletedError
from streams.log.topics import Topics
from streams.progress.store import fold, row_key, tally_key
from streams.progress.view import ProgressView, StaleViewError
from streams.request.status import Status
from tests.support.changelog import Changelog
from tests.support.examples import NOON, completed, created, failed, processed, requested
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

SOON = 60.0


@asynccontextmanager
async def viewing(settings: Settings) -> AsyncIterator[ProgressView]:
    view = ProgressView(settings)
    try:
        await view.start(timeout=120)
        yield view
    finally:
        await view.stop()


@asynccontextmanager
async def logging(settings: Settings) -> AsyncIterator[EventLog]:
    log = EventLog(settings)
    await log.start()
    try:
        yield log
    finally:
        await log.stop()


async def commit(settings: Settings, offsets: dict[TopicPartition, int]) -> None:
    """Commit for the progress app, whose workers are not running."""
    group = Topics(settings.topic_prefix).group("progress")
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka_brokers, group_id=group, enable_auto_commit=False)
    await consumer.start()
    try:
        consumer.assign(list(offsets))
        await consumer.commit({place: OffsetAndMetadata(offset, "") for place, offset in offsets.items()})
    finally:
        await consumer.stop()


# --- a request is known as soon as Kafka has it


async def test_every_view_finds_a_request_after_its_creation(kafka_settings: Settings) -> None:
    async with viewing(kafka_settings) as one, viewing(kafka_settings) as two, logging(kafka_settings) as log:
        for number in range(20):
            await log.append(created(f"request-{number}", total=3, owner="shop"))
            for view in (one, two):
                status = await view.get_fresh(f"request-{number}", timeout=SOON)
                assert status is not None, f"request {number} is unknown although Kafka has it"
                assert (status.status, status.total, status.succeeded) == ("processing", 3, 0)
                assert status.owner == "shop"
    async with viewing(kafka_settings) as later:
        assert later.get("request-19") is not None


async def test_unknown_request_is_none(kafka_settings: Settings) -> None:
    async with viewing(kafka_settings) as view:
        assert view.get("nobody") is None
        assert await view.get_fresh("nobody", timeout=SOON) is None


async def test_view_shows_writes_of_the_progress_app(kafka_settings: Settings, request_id: str) -> None:
    images = [requested(request_id, index) for index in (0, 1, 1500)]
    results = [processed(images[0]), failed(images[1]), processed(images[2], input_bytes=10, output_bytes=5)]
    events: Sequence[Event] = [created(request_id, total=2000, webhook_url="https://r.example/"), *results]
    async with viewing(kafka_settings) as view, Changelog(kafka_settings) as changelog:

        async def after(event: Event) -> Status:
            await changelog.fold(event)
            await view.catch_up(SOON)
            status = view.get(request_id)
            assert status is not None
            return status

        seen = [await after(event) for event in events]
        sums = [(status.succeeded, status.failed, status.input_bytes, status.output_bytes) for status in seen]
        assert sums == [(0, 0, 0, 0), (1, 0, 1000, 400), (1, 1, 1000, 400), (2, 1, 1010, 405)]
        assert seen[-1].updated_at == results[2].time
        assert (seen[-1].status, seen[-1].webhook, seen[-1].output_csv_url) == ("processing", None, None)

        done = completed(request_id, webhook_url="https://r.example/")
        status = await after(done)
        assert (status.status, status.webhook) == ("completed", "pending")
        assert (status.completed_at, status.output_csv_url) == (done.time, done.output_csv_url)
        assert status.output_csv_path == done.output_csv_path
    async with viewing(kafka_settings) as later:
        assert later.get(request_id) == status


async def test_failures_are_unknown_while_a_completion_is_ahead(kafka_settings: Settings, request_id: str) -> None:
    done = completed(request_id)
    async with (
        viewing(kafka_settings) as view,
        logging(kafka_settings) as log,
        Changelog(kafka_settings) as changelog,
    ):
        await changelog.fold(created(request_id))
        await view.catch_up(SOON)
        assert view.chunk_failed(request_id, 0) == 0
        await view.reached(await log.append(done), SOON)
        assert view.chunk_failed(request_id, 0) is None
        for event in (failed(requested(request_id, 0)), done):
            await changelog.fold(event)
        await view.catch_up(SOON)
        assert view.chunk_failed(request_id, 0) == 1


async def test_change_wakes_only_watchers_of_its_request(kafka_settings: Settings, request_id: str) -> None:
    async with viewing(kafka_settings) as view, Changelog(kafka_settings) as changelog:
        with view.watching(request_id) as changed, view.watching("another") as other:
            await changelog.fold(created(request_id))
            async with asyncio.timeout(SOON):
                await changed.wait()
            changed.clear()
            await changelog.fold(processed(requested(request_id)))
            async with asyncio.timeout(SOON):
                await changed.wait()
            assert not other.is_set()
        assert view._watchers == {}


async def test_command_is_visible_before_and_after_progress_reads_it(kafka_settings: Settings, request_id: str) -> None:
    cancelled = RequestCancelled(request_id=request_id, time=NOON + timedelta(hours=2))
    retried = RequestRetried(request_id=request_id, run=1, created_at=NOON, time=NOON + timedelta(hours=3))
    image = requested(request_id)
    async with (
        viewing(kafka_settings) as view,
        logging(kafka_settings) as log,
        Changelog(kafka_settings) as changelog,
    ):

        async def seen() -> tuple[str, int, int]:
            await view.catch_up(SOON)
            status = view.get(request_id)
            assert status is not None
            return status.status, status.failed, status.run

        await changelog.fold(created(request_id, total=2), failed(image))
        await view.reached(await log.append(cancelled), SOON)
        assert await seen() == ("cancelled", 1, 0)
        # A row that was written before the workers read of the cancel says nothing about it.
        await changelog.fold(RequestProjected(request_id=request_id, run=0))
        assert await seen() == ("cancelled", 1, 0)
        await changelog.fold(cancelled)
        assert await seen() == ("cancelled", 1, 0)
        await view.reached(await log.append(retried), SOON)
        assert await seen() == ("processing", 0, 1)
        await changelog.fold(retried)
        assert await seen() == ("processing", 0, 1)
        assert view._requests[request_id].ahead == {}


async def test_retry_of_evicted_request_is_visible_until_it_returns(kafka_settings: Settings, request_id: str) -> None:
    retried = RequestRetried(request_id=request_id, run=1, created_at=NOON, time=NOON + timedelta(hours=3))
    async with (
        viewing(kafka_settings) as view,
        logging(kafka_settings) as log,
        Changelog(kafka_settings) as changelog,
    ):
        await changelog.fold(created(request_id), completed(request_id))
        await changelog.fold(ProgressEvicted(request_id=request_id, stage="evicted"))
        await view.reached(await log.append(retried), SOON)
        assert view.get(request_id) is None
        assert view.retry_of(request_id) == retried
        await changelog.put(row_key(request_id), None)
        for event in (created(request_id), retried):
            await changelog.fold(event)
        await view.catch_up(SOON)
        assert view.retry_of(request_id) is None
        status = view.get(request_id)
        assert status is not None
        assert status.run == 1


async def test_request_with_deleted_records_is_gone(kafka_settings: Settings, request_id: str) -> None:
    other = f"{request_id}-other"
    events = [created(request_id), processed(requested(request_id)), created(other), processed(requested(other))]
    async with viewing(kafka_settings) as view, Changelog(kafka_settings) as changelog:
        await changelog.fold(*events)
        await changelog.put(tally_key(request_id, 0), None)
        await changelog.put(row_key(request_id), None)
        await view.catch_up(SOON)
        async with viewing(kafka_settings) as later:
            for each in (view, later):
                assert each.get(request_id) is None
                status = each.get(other)
                assert status is not None
                assert status.succeeded == 1


# --- where reading begins, and that it goes on


async def test_committed_progress_comes_from_the_table_alone(kafka_settings: Settings) -> None:
    """A request that left the table long ago must not come back with each start of the API."""

    async with logging(kafka_settings) as log:
        old = await log.append(created("old"))
        place = TopicPartition(old.topic, old.partition)
        others = [TopicPartition(old.topic, 1 - old.partition)]
        await commit(kafka_settings, {place: old.offset + 1, **dict.fromkeys(others, 0)})
        for number in range(4):
            await log.append(created(f"new-{number}"))
        async with viewing(kafka_settings) as view:
            assert await view.get_fresh("old", timeout=SOON) is None
            assert [number for number in range(4) if view.get(f"new-{number}") is None] == []


async def test_offsets_without_a_record_do_not_block_the_view(kafka_settings: Settings) -> None:
    """The marks of transactions, and partitions whose records were deleted, end in offsets that no reader gets."""

    topics = Topics(kafka_settings.topic_prefix)
    writer = AIOKafkaProducer(
        bootstrap_servers=kafka_settings.kafka_brokers, transactional_id=kafka_settings.topic_prefix
    )
    await writer.start()
    try:
        for number, topic in enumerate((topics.requests, topics.progress_changelog)):
            async with writer.transaction():
                event = created(f"request-{number}")
                (record,) = fold(event, lambda _: None).changes.items()
                key, value = record if topic == topics.progress_changelog else (event.key, event.encode())
                await writer.send_and_wait(topic, value, key, partition=0)
    finally:
        await writer.stop()
    async with logging(kafka_settings) as log:
        partitions = {(await log.append(created(f"deleted-{number}"))).partition for number in range(9)}
        assert partitions == {0, 1}
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_settings.kafka_brokers)
    await admin.start()
    try:
        await admin.delete_records({TopicPartition(topics.requests, 1): RecordsToDelete(before_offset=-1)})
    finally:
        await admin.close()
    async with viewing(kafka_settings) as view:
        assert await view.get_fresh("nobody", timeout=SOON) is None
        assert view.get("request-0") is not None
        assert view.get("request-1") is not None


async def test_view_ends_where_its_records_are_gone(kafka_settings: Settings) -> None:
    """A topic was truncated or created again: a view that went on from the end would be wrong for ever."""
    place = TopicPartition(Topics(kafka_settings.topic_prefix).requests, 0)
    async with viewing(kafka_settings) as view:
        assert view._follower._consumer is not None
        view._follower._consumer.seek(place, 1_000_000)
        with pytest.raises(RecordsDeletedError, match="truncated"):
            await view.broken()


async def test_view_waits_for_topics_unknown_to_the_brokers(kafka_address: str, request_id: str) -> None:
    """As just after their creation: a view that took them for empty would answer 404 for ever."""
    settings = Settings(kafka_brokers=kafka_address, topic_prefix=f"test-{uuid4().hex[:12]}", partitions=2)

    view = ProgressView(settings)
    starting = asyncio.create_task(view.start(timeout=120))
    try:
        await asyncio.sleep(0.5)
        assert not starting.done()
        await create_topics(settings, Topics(settings.topic_prefix).configs())
        await starting
        async with logging(settings) as log:
            await log.append(created(request_id))
        assert await view.get_fresh(request_id, timeout=SOON) is not None
    finally:
        await view.stop()


async def test_missing_topics_are_an_error_in_bounded_time(kafka_address: str) -> None:
    view = ProgressView(Settings(kafka_brokers=kafka_address, topic_prefix=f"test-{uuid4().hex[:12]}"))
    async with asyncio.timeout(60):
        with pytest.raises(KafkaUnavailableError):
            await view.start(timeout=1)
        await view.stop()


async def test_unreadable_record_does_not_end_the_view(kafka_settings: Settings, request_id: str) -> None:
    topic = Topics(kafka_settings.topic_prefix).requests
    writer = AIOKafkaProducer(bootstrap_servers=kafka_settings.kafka_brokers)
    await writer.start()
    try:
        async with viewing(kafka_settings) as view, logging(kafka_settings) as log:
            for value in (None, b"", b"\xff", b"{}", b'{"specversion":"1.0","type":"other","data":{}}'):
                for partition in (0, 1):
                    await writer.send_and_wait(topic, value, b"key", partition=partition)
            await log.append(created(request_id))
            assert await view.get_fresh(request_id, timeout=SOON) is not None
    finally:
        await writer.stop()


# --- Kafka is away


async def test_view_that_was_not_started_is_stale() -> None:
    view = ProgressView(Settings(kafka_brokers="127.0.0.1:1"))
    with pytest.raises(StaleViewError):
        await view.get_fresh("anything", timeout=1)


@pytest.mark.parametrize("listens", [False, True], ids=["nothing listens", "who listens says nothing"])
async def test_unreachable_kafka_fails_the_view_in_bounded_time(listens: bool) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listens:
            silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        view = ProgressView(Settings(kafka_brokers=address))
        async with asyncio.timeout(60):
            with pytest.raises(KafkaUnavailableError, match=address):
                await view.start(timeout=1)
            await view.stop()


async def test_view_is_stale_in_an_outage_and_recovers_afterwards(tmp_path: Path) -> None:
    async with EmbeddedKafka(tmp_path) as kafka:
        settings = Settings(
            kafka_brokers=kafka.address, topic_prefix=f"test-{uuid4().hex[:12]}", partitions=1, data_dir=tmp_path
        )
        await create_topics(settings, Topics(settings.topic_prefix).configs())
        async with viewing(settings) as view:
            async with logging(settings) as log:
                await log.append(created("before"))
            assert await view.get_fresh("before", timeout=SOON) is not None
            await kafka.stop()
            async with asyncio.timeout(60):
                assert await view.get_fresh("before", timeout=1) is not None, "what is known stays known"
                with pytest.raises(StaleViewError):
                    await view.get_fresh("nobody", timeout=1)
            await kafka.start()
            async with logging(settings) as log:
                await log.append(created("after"))

            async def known() -> bool:
                try:
                    return await view.get_fresh("after", timeout=2) is not None
                except StaleViewError:
                    return False

            await eventually(known)
