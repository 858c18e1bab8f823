"""Stalled requests are reconciled with the log; finished ones are evicted from the progress table."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.structs import RecordMetadata, TopicPartition

from streams.events.base import Event
from streams.events.images import ImageProcessed, ImageRequested
from streams.events.maintenance import ProgressRebuildRequested
from streams.events.progress import ImagesRerequested, ProgressEvicted
from streams.events.registry import decode
from streams.events.requests import RequestCreated, RequestRetried
from tests.e2e.conftest import System, start_system, stop_system
from tests.support.published_clients import call, completed, upload
from tests.support.shop import Shop
from tests.support.topic_reader import wait_until_read
from tests.support.waiting import wait_until

HEADER = "S. No.,Product Name,Input Image URLs\n"


@dataclass(frozen=True)
class Topics:
    """Topics and consumer groups of a system of the tests' own."""

    address: str
    prefix: str

    def name(self, topic: str) -> str:
        return f"{self.prefix}.{topic}"

    def write(self, *events: Event) -> list[RecordMetadata]:
        """Append events as the API does."""

        async def send() -> list[RecordMetadata]:
            producer = AIOKafkaProducer(bootstrap_servers=self.address)
            await producer.start()
            try:
                return [
                    await producer.send_and_wait(
                        self.name(event.topic.replace("_", "-")), event.encode(), key=event.key
                    )
                    for event in events
                ]
            finally:
                await producer.stop()

        return asyncio.run(send())

    def events_of(self, topic: str, request_id: str) -> list[Event]:
        async def read() -> list[Event]:
            async with self._consumer() as consumer:
                partitions = self._partitions(topic)
                consumer.assign(partitions)
                await consumer.seek_to_beginning(*partitions)
                ends = await consumer.end_offsets(partitions)
                found: list[Event] = []
                while any([await consumer.position(partition) < end for partition, end in ends.items()]):
                    for records in (await consumer.getmany(timeout_ms=500)).values():
                        found += [decode(record.value) for record in records]
                return [event for event in found if event.request_id == request_id]

        return asyncio.run(read())

    def skip(self, app: str, *topics: str) -> None:
        """Lose events: commit the end offsets for an app that has not read them."""

        async def commit() -> None:
            async with self._consumer(app) as consumer:
                partitions = self._partitions(*topics)
                consumer.assign(partitions)
                await consumer.commit(await consumer.end_offsets(partitions))

        asyncio.run(commit())

    def wait_until_read(self, app: str, *topics: str) -> None:
        """Return when an app has committed all that is on the topics now."""
        wait_until_read(self.address, f"{self.prefix}-{app}", *map(self.name, topics))

    def wait_until_evicted(self, request_id: str, times: int = 1) -> None:
        """Return when the progress table has evicted the request so many times."""

        def evictions() -> int:
            events = self.events_of("progress", request_id)
            return len({event.id for event in events if isinstance(event, ProgressEvicted)})

        wait_until(lambda: evictions() >= times, "eviction")
        self.wait_until_read("progress", "progress")

    def _consumer(self, app: str | None = None) -> AIOKafkaConsumer:
        group = None if app is None else f"{self.prefix}-{app}"
        return AIOKafkaConsumer(bootstrap_servers=self.address, group_id=group, enable_auto_commit=False)

    def _partitions(self, *topics: str) -> list[TopicPartition]:
        return [TopicPartition(self.name(topic), number) for topic in topics for number in range(8)]


@dataclass(frozen=True)
class Lost:
    """Requests whose events the apps of a system have missed: ``by_all``, and ``by_projections`` only."""

    by_all: str
    by_projections: str


def image(request_id: str, index: int, url: str) -> ImageRequested:
    return ImageRequested(
        request_id=request_id,
        index=index,
        row=index,
        position=0,
        serial=str(index),
        product_name="Shoe",
        input_url=url,
        cells=(str(index), "Shoe", url),
    )


def created(images: list[ImageRequested], total: int, written: list[RecordMetadata]) -> RequestCreated:
    """A RequestCreated whose images are said to be where ``written`` says."""
    offsets: dict[int, tuple[int, int]] = {}
    for record in written:
        first, last = offsets.get(record.partition, (record.offset, record.offset))
        offsets[record.partition] = (min(first, record.offset), max(last, record.offset))
    return RequestCreated(
        request_id=images[0].request_id,
        total=total,
        rows=total,
        header=("S. No.", "Product Name", "Input Image URLs"),
        body_sha256="",
        # As the API does it: the request bears the time at which its upload was accepted.
        time=images[0].time,
        image_offsets=offsets,
    )


def result(request: ImageRequested) -> ImageProcessed:
    return ImageProcessed.of(
        request,
        output_url="http://example.com/done.jpg",
        output_path="images/done.jpg",
        input_bytes=100,
        output_bytes=50,
        format="jpeg",
        width=1,
        height=1,
        sha256="",
    )


@pytest.fixture(scope="module")
def topics(kafka_address: str) -> Topics:
    return Topics(kafka_address, f"stalled_{uuid4().hex[:8]}")


@pytest.fixture(scope="module")
def environment(
    topics: Topics, cassandra_address: str, shop: Shop, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """A system that reconciles once, after 2 s without progress, and evicts finished requests after 3 s."""
    return {
        **os.environ,
        "SHRINKSTREAM_KAFKA_BROKERS": topics.address,
        "SHRINKSTREAM_CASSANDRA_HOSTS": cassandra_address,
        "SHRINKSTREAM_CASSANDRA_KEYSPACE": topics.prefix,
        "SHRINKSTREAM_TOPIC_PREFIX": topics.prefix,
        "SHRINKSTREAM_DATA_DIR": str(tmp_path_factory.mktemp("stalled")),
        "SHRINKSTREAM_FETCH_ALLOW": shop.address,
        "SHRINKSTREAM_STALL_AFTER": "2",
        "SHRINKSTREAM_RECONCILE_ROUNDS": "1",
        "SHRINKSTREAM_PROGRESS_GRACE": "3",
    }


@pytest.fixture(scope="module")
def lost(environment: dict[str, str], topics: Topics, shop: Shop) -> Lost:
    """Of the first request, 2 of 6 results are on the log; of the second, all 3. Written before the system starts."""
    subprocess.run([sys.executable, "-m", "infra.cli", "init"], env=environment, timeout=180, check=True)
    lost = Lost(str(uuid4()), str(uuid4()))
    asked = [image(lost.by_all, index, shop.add(f"missed-{index}.jpg")) for index in range(6)]
    counted = [image(lost.by_projections, index, shop.add(f"counted-{index}.jpg")) for index in range(3)]
    written = topics.write(*asked)
    written_too = topics.write(*counted)
    topics.skip("compress", "image-requests")
    topics.write(*(result(request) for request in asked[:2]))
    topics.skip("progress", "image-results", "requests")
    topics.write(*(result(request) for request in counted))
    topics.skip("projections", "image-results", "requests")
    topics.write(created(asked, 6, written), created(counted, 3, written_too))
    return lost


@pytest.fixture(scope="module")
def own(environment: dict[str, str], lost: Lost) -> Iterator[System]:
    process, url = start_system(environment, "--port", "0")
    try:
        yield System(url, Path(environment["SHRINKSTREAM_DATA_DIR"]), process, environment)
    finally:
        assert stop_system(process) == 0


def verify(system: System, request_id: str) -> None:
    for what in ("progress", "history", "output"):
        verified = system.run("replay", what, "--verify", "--request", request_id)
        assert verified.returncode == 0, verified.stdout + verified.stderr


def test_lost_events_are_reconciled_without_repeated_work(own: System, topics: Topics, lost: Lost, shop: Shop) -> None:
    for request_id, total in ((lost.by_all, 6), (lost.by_projections, 3)):
        status = completed(own.url, request_id)
        assert (status["succeeded"], status["failed"]) == (total, 0)
    (again,) = [event for event in topics.events_of("progress", lost.by_all) if isinstance(event, ImagesRerequested)]
    assert again.missing == 4
    fetched = sorted(name for name in shop.fetched if name.startswith(("missed-", "counted-")))
    assert fetched == [f"missed-{index}.jpg" for index in range(2, 6)]


def test_image_without_any_event_fails_as_lost(own: System, topics: Topics, shop: Shop) -> None:
    request_id = str(uuid4())
    known = image(request_id, 0, shop.add("known.jpg"))
    topics.write(created([known], 2, topics.write(known)))
    status = completed(own.url, request_id)
    assert (status["succeeded"], status["failed"]) == (1, 1)
    assert b"lost" in call(own.url, "GET", f"/api/download/{request_id}").body


def test_commands_about_unknown_requests_block_no_partition(own: System, topics: Topics, shop: Shop) -> None:
    """They decode, so that none of them becomes a dead letter."""
    long_ago = datetime(1970, 1, 1, tzinfo=UTC)
    ids = [str(uuid4()) for _ in range(20)]  # of every partition
    topics.write(*(RequestRetried(request_id=unknown, run=1, created_at=long_ago) for unknown in ids))
    topics.write(*(ProgressRebuildRequested(request_id=other, rebuild_id="x", partition=99) for other in ids))
    request_id = upload(own.url, f"{HEADER}1,Shoe,{shop.add('unharmed.jpg')}\n")
    assert completed(own.url, request_id)["succeeded"] == 1


@pytest.mark.usefixtures("own")
def test_old_results_without_request_are_evicted(topics: Topics) -> None:
    request_id = str(uuid4())
    old = result(image(request_id, 0, "https://shop.example/0.jpg"))
    topics.write(old.model_copy(update={"time": datetime.now(UTC) - timedelta(days=8)}))
    topics.wait_until_evicted(request_id)


def test_late_redelivery_does_not_resurrect_evicted_request(own: System, topics: Topics, shop: Shop) -> None:
    request_id = upload(own.url, f"{HEADER}1,Shoe,{shop.add('leaves.jpg')}\n")
    before = completed(own.url, request_id)
    topics.wait_until_evicted(request_id)
    assert call(own.url, "GET", f"/api/status/{request_id}").json == before
    assert call(own.url, "GET", f"/api/download/{request_id}").status == 200
    topics.write(*topics.events_of("requests", request_id), *topics.events_of("image-results", request_id))
    for app in ("progress", "projections"):
        topics.wait_until_read(app, "requests", "image-results")
    assert call(own.url, "GET", f"/api/status/{request_id}").json == before


def test_evicted_failed_request_retries_only_its_failure(own: System, topics: Topics, shop: Shop) -> None:
    rows = f"1,Shoe,{shop.add('was-good.jpg')}\n2,Shoe,{shop.url}/files/is-late.jpg\n"
    request_id = upload(own.url, HEADER + rows)
    assert completed(own.url, request_id)["failed"] == 1
    topics.wait_until_evicted(request_id)
    shop.add("is-late.jpg")
    retry(own, request_id, succeeded=2, failed=0)
    assert shop.fetched.count("was-good.jpg") == 1
    topics.wait_until_evicted(request_id, times=2)
    assert call(own.url, "GET", f"/api/status/{request_id}").json["succeeded"] == 2
    verify(own, request_id)


def test_evicted_cancelled_request_can_be_retried(own: System, topics: Topics, shop: Shop) -> None:
    url = own.url
    shop.slow_seconds = 1.0
    try:
        slow = "".join(f"{number},Slow,{shop.url}/slow?{number}\n" for number in range(60))
        request_id = upload(url, f"{HEADER}{slow}x,Shoe,{shop.add('stopped.jpg')}\n")
        assert call(url, "POST", f"/api/requests/{request_id}/cancel").json["status"] == "cancelled"
        topics.wait_until_evicted(request_id)
    finally:
        shop.slow_seconds = 0
    stopped = call(url, "GET", f"/api/status/{request_id}").json
    assert (stopped["status"], stopped["total"], stopped["completedAt"]) == ("cancelled", 61, None)
    results = topics.events_of("image-results", request_id)
    assert 0 < stopped["succeeded"] + stopped["failed"] == len(results) < 61
    images = call(url, "GET", f"/api/requests/{request_id}/images?status=cancelled").json["items"]
    assert len(images) == 61 - len(results)
    assert call(url, "POST", f"/api/requests/{request_id}/cancel").json == stopped

    retry(own, request_id, succeeded=1, failed=60)
    verify(own, request_id)


def retry(system: System, request_id: str, **sums: int) -> None:
    assert call(system.url, "POST", f"/api/requests/{request_id}/retry").status == 202
    assert call(system.url, "GET", f"/api/status/{request_id}").json["completedAt"] is None
    status = completed(system.url, request_id)
    assert {name: status[name] for name in sums} == sums
