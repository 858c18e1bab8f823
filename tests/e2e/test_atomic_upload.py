"""An API that is killed while it writes an upload's events leaves a whole request, or none."""

import asyncio
import os
import threading
import time
from pathlib import Path

import psutil
from aiokafka import AIOKafkaConsumer

from streams.events.registry import decode
from streams.events.requests import RequestCreated
from tests.e2e.conftest import start_system, stop_system
from tests.support.published_clients import call, completed

PREFIX = "atomic"
IMAGES = 4_000


def created(address: str) -> list[RequestCreated]:
    """Every RequestCreated there is."""

    async def read() -> list[RequestCreated]:
        consumer = AIOKafkaConsumer(f"{PREFIX}.requests", bootstrap_servers=address, auto_offset_reset="earliest")
        await consumer.start()
        try:
            ends = await consumer.end_offsets(consumer.assignment())
            found = []
            while any([await consumer.position(partition) < end for partition, end in ends.items()]):
                for records in (await consumer.getmany(timeout_ms=500)).values():
                    found += [decode(record.value) for record in records]
            return [event for event in found if isinstance(event, RequestCreated)]
        finally:
            await consumer.stop()

    return asyncio.run(read())


def images_asked_for(address: str) -> int:
    async def count() -> int:
        consumer = AIOKafkaConsumer(f"{PREFIX}.image-requests", bootstrap_servers=address)
        await consumer.start()
        try:
            return sum((await consumer.end_offsets(consumer.assignment())).values())
        finally:
            await consumer.stop()

    return asyncio.run(count())


def kill_amid_publishing(api: psutil.Process, address: str) -> None:
    """Run the API in slices of 10 ms of its CPU time, however busy the machine is, until it has written an event."""

    def seconds() -> float:
        times = api.cpu_times()
        return float(times.user + times.system)

    async def run_in_slices() -> None:
        consumer = AIOKafkaConsumer(f"{PREFIX}.image-requests", bootstrap_servers=address)
        await consumer.start()
        try:
            async with asyncio.timeout(300):
                while not sum((await consumer.end_offsets(consumer.assignment())).values()):
                    before = seconds()
                    api.resume()
                    for _ in range(20):  # it may be waiting for something
                        await asyncio.sleep(0.005)
                        if seconds() > before:
                            break
                    api.suspend()
        finally:
            api.kill()
            await consumer.stop()

    asyncio.run(run_in_slices())


def api_of(up: int) -> psutil.Process:
    (api,) = [one for one in psutil.Process(up).children(recursive=True) if "infra.cli api" in " ".join(one.cmdline())]
    return api


def test_killed_upload_leaves_nothing_and_repeats_as_one_request(
    kafka_address: str, cassandra_address: str, tmp_path: Path
) -> None:
    environment = {
        **os.environ,
        "SHRINKSTREAM_KAFKA_BROKERS": kafka_address,
        "SHRINKSTREAM_CASSANDRA_HOSTS": cassandra_address,
        "SHRINKSTREAM_CASSANDRA_KEYSPACE": PREFIX,
        "SHRINKSTREAM_TOPIC_PREFIX": PREFIX,
        "SHRINKSTREAM_DATA_DIR": str(tmp_path),
    }
    # Addresses that are refused without asking anybody: it is the events that are tried here.
    rows = "".join(f"{number},Shoe,http://10.0.0.1/{number}.jpg\n" for number in range(IMAGES))
    csv = ("S. No.,Product Name,Input Image URLs\n" + rows).encode()
    headers = {"Content-Type": "text/csv", "Idempotency-Key": "one order"}
    process, url = start_system(environment, "--port", "0")
    try:
        failures: list[Exception] = []

        def upload() -> None:
            try:
                call(url, "POST", "/api/upload", csv, headers)
            except Exception as error:  # noqa: BLE001 - any breaking off is what is wanted
                failures.append(error)

        client = threading.Thread(target=upload)
        client.start()
        kill_amid_publishing(api_of(process.pid), kafka_address)
        client.join(60)
        assert failures, "the upload was answered before the API was killed"
        assert created(kafka_address) == []
        assert 0 < images_asked_for(kafka_address) < IMAGES

        request_ids: set[str] = set()
        deadline = time.monotonic() + 240
        while not request_ids:
            assert time.monotonic() < deadline
            try:
                answer = call(url, "POST", "/api/upload", csv, headers)
            except OSError:
                time.sleep(0.5)  # the API is being started again
                continue
            if answer.status == 409:  # the killed upload's claim of the key lasts for its lease
                time.sleep(int(answer.headers["retry-after"]))
                continue
            assert answer.status == 202, answer.body
            request_ids.add(answer.json["requestId"])
        request_ids.add(call(url, "POST", "/api/upload", csv, headers).json["requestId"])
        (request_id,) = request_ids
        assert {event.request_id for event in created(kafka_address)} == {request_id}
        status = completed(url, request_id, timeout=300)
        assert (status["total"], status["failed"]) == (IMAGES, IMAGES)
        assert call(url, "GET", f"/api/download/{request_id}").body.count(b"fetch_forbidden_address") == IMAGES
    finally:
        assert stop_system(process) == 0
