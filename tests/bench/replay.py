"""Folding the log anew, beside a consumer that reads the same records and only parses them."""

import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path
from uuid import uuid4

import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from infra.cli.init import initialise
from infra.embedded import EmbeddedServers
from infra.embedded.cassandra import EmbeddedCassandra
from infra.embedded.kafka import EmbeddedKafka
from infra.settings import Settings
from streams.events import HEADERS, ImageProcessed, RequestCreated, utc_now
from streams.progress.rebuild import fold_partition
from streams.topics import Topics

EVENTS = 100_000
ROUNDS = 3


def result(request_id: str, index: int) -> ImageProcessed:
    return ImageProcessed(
        request_id=request_id,
        index=index,
        row=index,
        position=0,
        serial=str(index),
        product_name=f"Product {index}",
        input_url=f"https://shop.example/images/{index}.jpg",
        cells=(str(index), f"Product {index}", f"https://shop.example/images/{index}.jpg"),
        requested_at=utc_now(),
        output_url=f"http://127.0.0.1:8080/images/{request_id}/{index}.jpg",
        output_path=f"images/{request_id}/{index}.jpg",
        input_bytes=100_000,
        output_bytes=40_000,
        format="jpeg",
        width=800,
        height=600,
        sha256="0" * 64,
    )


async def fill(settings: Settings) -> None:
    """One request of 100,000 images, all in one partition, as it is for any request."""
    topics = Topics(settings.topic_prefix)
    request_id = str(uuid4())
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka_brokers, linger_ms=5, max_batch_size=1 << 17)
    await producer.start()
    try:
        headers = list(HEADERS)
        created = RequestCreated(request_id=request_id, total=EVENTS, rows=EVENTS, header=("a",), body_sha256="")
        await producer.send_and_wait(topics.requests, created.encode(), headers=headers, partition=0)
        for index in range(EVENTS):
            event = result(request_id, index)
            await producer.send(topics.image_results, event.encode(), key=event.key, headers=headers, partition=0)
        await producer.flush()
    finally:
        await producer.stop()


async def raw(settings: Settings) -> float:
    """Events per second of `getmany` and a JSON parser."""
    partition = TopicPartition(Topics(settings.topic_prefix).image_results, 0)
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka_brokers, max_partition_fetch_bytes=4 << 20)
    await consumer.start()
    try:
        consumer.assign([partition])
        consumer.seek(partition, 0)
        started, seen = time.perf_counter(), 0
        while seen < EVENTS:
            for records in (await consumer.getmany(timeout_ms=500)).values():
                seen += sum(orjson.loads(record.value) is not None for record in records)
        return seen / (time.perf_counter() - started)
    finally:
        await consumer.stop()


async def folded(settings: Settings) -> float:
    started = time.perf_counter()
    rebuilt = await fold_partition(settings, 0)
    assert len(rebuilt.records) == EVENTS // 1000 + 1, "not every image was folded in"
    return rebuilt.events / (time.perf_counter() - started)


async def run() -> None:
    with tempfile.TemporaryDirectory() as folder:
        kafka, cassandra = EmbeddedKafka(Path(folder)), EmbeddedCassandra(Path(folder))
        async with EmbeddedServers(kafka, cassandra):
            settings = Settings(kafka_brokers=kafka.address, cassandra_hosts=cassandra.address, partitions=1)
            await initialise(settings)
            await fill(settings)
            rates: dict[str, list[float]] = {"replay progress": [], "raw getmany + JSON": []}
            for _ in range(ROUNDS):
                rates["replay progress"].append(await folded(settings))
                rates["raw getmany + JSON"].append(await raw(settings))
    ratio = statistics.median(a / b for a, b in zip(*rates.values(), strict=True))
    print(f"{EVENTS} ImageProcessed folded anew, {ROUNDS} rounds in turn, median events/s (spread)")
    for name, values in rates.items():
        print(f"  {name:28} {statistics.median(values):8.0f}  ({min(values):.0f} to {max(values):.0f})")
    print(f"  ratio of ours to raw {ratio:.2f}")


def main() -> None:
    os.environ.pop("SHRINKSTREAM_KAFKA_BROKERS", None)
    asyncio.run(run())
