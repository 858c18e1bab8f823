"""A request whose events were lost is found and finishes all the same; a finished one leaves the table."""

import asyncio
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.structs import RecordMetadata, TopicPartition

from streams.events import (
    Event,
    ImageProcessed,
    ImageRequested,
    ImagesRequestedAgain,
    ProgressRebuildRequested,
    RequestCreated,
    RequestExpired,
    RequestRetried,
    decode,
)
from tests.e2e.conftest import start_system, stop_system
from tests.support.published_clients import call, completed, upload
from tests.support.shop import Shop

PREFIX = "healing"
HEADER = "S. No.,Product Name,Input Image URLs\n"


@pytest.fixture
def hasty_environment(kafka_address: str, cassandra_address: str, shop: Shop, tmp_path: Path) -> dict[str, str]:
    """A system that loses patience after 2 s, asks once, and lets finished requests go after 3 s."""
    return {
        **os.environ,
        "SHRINKSTREAM_KAFKA_BROKERS": kafka_address,
        "SHRINKSTREAM_CASSANDRA_HOSTS": cassandra_address,
        "SHRINKSTREAM_CASSANDRA_KEYSPACE": PREFIX,
        "SHRINKSTREAM_TOPIC_PREFIX": PREFIX,
        "SHRINKSTREAM_DATA_DIR": str(tmp_path),
        "SHRINKSTREAM_FETCH_ALLOW": shop.address,
        "SHRINKSTREAM_STALL_AFTER": "2",
        "SHRINKSTREAM_HEAL_LIMIT": "1",
        "SHRINKSTREAM_PROGRESS_GRACE": "3",
    }


def run(environment: dict[str, str], *command: str) -> None:
    subprocess.run([sys.executable, "-m", "infra.cli", *command], env=environment, timeout=60, check=True)


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


def write(address: str, *events: Event) -> list[RecordMetadata]:
    """Put events onto the topics as the API does."""

    async def send() -> list[RecordMetadata]:
        producer = AIOKafkaProducer(bootstrap_servers=address)
        await producer.start()
        try:
            return [
                await producer.send_and_wait(f"{PREFIX}.{event.topic.replace('_', '-')}", event.encode(), key=event.key)
                for event in events
            ]
        finally:
            await producer.stop()

    return asyncio.run(send())


def events_of(address: str, topic: str, request_id: str) -> list[Event]:
    async def read() -> list[Event]:
        consumer = AIOKafkaConsumer(f"{PREFIX}.{topic}", bootstrap_servers=address, auto_offset_reset="earliest")
        await consumer.start()
        try:
            ends = await consumer.end_offsets(consumer.assignment())
            found: list[Event] = []
            while any([await consumer.position(partition) < end for partition, end in ends.items()]):
                for records in (await consumer.getmany(timeout_ms=500)).values():
                    found += [decode(record.value) for record in records]
            return [event for event in found if event.request_id == request_id]
        finally:
            await consumer.stop()

    return asyncio.run(read())


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


def skip_all(address: str, app: str, *names: str) -> None:
    """Lose events: the consumer group of an app is put behind all there is, without having read it."""

    async def commit() -> None:
        consumer = AIOKafkaConsumer(bootstrap_servers=address, group_id=f"{PREFIX}-{app}", enable_auto_commit=False)
        await consumer.start()
        try:
            partitions = [TopicPartition(f"{PREFIX}.{name}", number) for name in names for number in range(8)]
            consumer.assign(partitions)
            await consumer.commit(await consumer.end_offsets(partitions))
        finally:
            await consumer.stop()

    asyncio.run(commit())


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


def test_events_that_every_app_missed_are_made_up_for_and_what_is_on_the_log_is_not_done_again(
    kafka_address: str, hasty_environment: dict[str, str], shop: Shop
) -> None:
    run(hasty_environment, "init")
    request_id, other_id = str(uuid4()), str(uuid4())
    asked = [image(request_id, index, shop.add(f"missed-{index}.jpg")) for index in range(6)]
    counted = [image(other_id, index, shop.add(f"counted-{index}.jpg")) for index in range(3)]
    written = write(kafka_address, *asked)
    written_too = write(kafka_address, *counted)
    skip_all(kafka_address, "compress", "image-requests")
    # Two of the first request's results are on the log, but neither progress nor projections will read them;
    # those of the other request are missed by projections only.
    write(kafka_address, *(result(request) for request in asked[:2]))
    skip_all(kafka_address, "progress", "image-results", "requests")
    write(kafka_address, *(result(request) for request in counted))
    skip_all(kafka_address, "projections", "image-results", "requests")
    write(kafka_address, created(asked, 6, written), created(counted, 3, written_too))

    process, url = start_system(hasty_environment, "--port", "0")
    try:
        status = completed(url, request_id, timeout=60)
        assert (status["succeeded"], status["failed"]) == (6, 0)
        status = completed(url, other_id, timeout=60)
        assert (status["succeeded"], status["failed"]) == (3, 0)
        (again,) = [
            event
            for event in events_of(kafka_address, "progress-tasks", request_id)
            if isinstance(event, ImagesRequestedAgain)
        ]
        assert again.missing == 4
        fetched = sorted(name for name in shop.fetched if name.startswith(("missed-", "counted-")))
        assert fetched == [f"missed-{index}.jpg" for index in range(2, 6)]
        images_that_nothing_is_known_of_are_given_up(kafka_address, url, shop)
        events_that_ask_for_what_is_not_there_hold_up_nobody(kafka_address, url, shop)
        results_that_no_request_came_for_are_forgotten(kafka_address)
        a_finished_request_leaves_the_table_and_is_still_answered_for(kafka_address, url, shop)
        retried = a_cancelled_request_leaves_the_table_and_both_may_be_retried_after_that(kafka_address, url, shop)
        for request_id in retried:
            for what in ("progress", "history", "output"):
                run(hasty_environment, "replay", what, "--verify", "--request", request_id)
    finally:
        assert stop_system(process) == 0


def wait_until_it_left(address: str, request_id: str, times: int = 1) -> None:
    deadline = time.monotonic() + 30
    while True:
        events = events_of(address, "progress-tasks", request_id)
        if len({event.id for event in events if isinstance(event, RequestExpired)}) >= times:
            break
        assert time.monotonic() < deadline
        time.sleep(0.3)
    time.sleep(1)


def images_that_nothing_is_known_of_are_given_up(address: str, url: str, shop: Shop) -> None:
    """The request ends all the same."""
    request_id = str(uuid4())
    known = image(request_id, 0, shop.add("known.jpg"))
    write(address, created([known], 2, write(address, known)))
    status = completed(url, request_id, timeout=60)
    assert (status["succeeded"], status["failed"]) == (1, 1)
    assert b"lost" in call(url, "GET", f"/api/download/{request_id}").body


def events_that_ask_for_what_is_not_there_hold_up_nobody(address: str, url: str, shop: Shop) -> None:
    """They are of the right form, so that nobody puts them aside."""
    long_ago = datetime(1970, 1, 1, tzinfo=UTC)
    ids = [str(uuid4()) for _ in range(20)]  # of every partition
    write(address, *(RequestRetried(request_id=unknown, run=1, created_at=long_ago) for unknown in ids))
    write(address, *(ProgressRebuildRequested(request_id=other, rebuild_id="x", partition=99) for other in ids))
    request_id = upload(url, f"{HEADER}1,Shoe,{shop.add('unharmed.jpg')}\n")
    assert completed(url, request_id, timeout=60)["succeeded"] == 1


def results_that_no_request_came_for_are_forgotten(address: str) -> None:
    request_id = str(uuid4())
    old = result(image(request_id, 0, "https://shop.example/0.jpg")).model_copy(
        update={"time": datetime.now(UTC) - timedelta(days=8)}
    )
    write(address, old)
    wait_until_it_left(address, request_id)


def a_finished_request_leaves_the_table_and_is_still_answered_for(address: str, url: str, shop: Shop) -> None:
    request_id = upload(url, f"{HEADER}1,Shoe,{shop.add('leaves.jpg')}\n")
    before = completed(url, request_id)
    wait_until_it_left(address, request_id)
    assert call(url, "GET", f"/api/status/{request_id}").json == before
    assert call(url, "GET", f"/api/download/{request_id}").status == 200
    # A repeat that comes late does not bring it back.
    write(address, *events_of(address, "requests", request_id), *events_of(address, "image-results", request_id))
    time.sleep(1)
    assert call(url, "GET", f"/api/status/{request_id}").json == before


def a_cancelled_request_leaves_the_table_and_both_may_be_retried_after_that(
    address: str, url: str, shop: Shop
) -> tuple[str, str]:
    """The retry brings them back; what had succeeded is not done again."""
    shop.slow_seconds = 1.0
    slow = "".join(f"{number},Slow,{shop.url}/slow?{number}\n" for number in range(60))
    stopped_id = upload(url, f"{HEADER}{slow}x,Shoe,{shop.add('stopped.jpg')}\n")
    failed_id = upload(url, f"{HEADER}1,Shoe,{shop.add('was-good.jpg')}\n2,Shoe,{shop.url}/files/is-late.jpg\n")
    assert call(url, "POST", f"/api/requests/{stopped_id}/cancel").json["status"] == "cancelled"
    assert completed(url, failed_id)["failed"] == 1
    wait_until_it_left(address, stopped_id)
    wait_until_it_left(address, failed_id)
    stopped = call(url, "GET", f"/api/status/{stopped_id}").json
    assert (stopped["status"], stopped["total"], stopped["completedAt"]) == ("cancelled", 61, None)
    results = events_of(address, "image-results", stopped_id)
    assert 0 < stopped["succeeded"] + stopped["failed"] == len(results) < 61
    images = call(url, "GET", f"/api/requests/{stopped_id}/images?status=cancelled").json["items"]
    assert len(images) == 61 - len(results)
    assert call(url, "POST", f"/api/requests/{stopped_id}/cancel").json == stopped

    shop.slow_seconds = 0
    shop.add("is-late.jpg")
    for request_id, expected in ((failed_id, (2, 0)), (stopped_id, (1, 60))):
        assert call(url, "POST", f"/api/requests/{request_id}/retry").status == 202
        assert call(url, "GET", f"/api/status/{request_id}").json["completedAt"] is None
        status = completed(url, request_id, timeout=60)
        assert (status["succeeded"], status["failed"]) == expected
    assert shop.fetched.count("was-good.jpg") == 1
    wait_until_it_left(address, failed_id, times=2)
    assert call(url, "GET", f"/api/status/{failed_id}").json["succeeded"] == 2
    return stopped_id, failed_id
