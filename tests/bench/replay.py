"""Fold of the log, beside a consumer that reads the same records and only parses them."""

import asyncio
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from cassandra.cluster import Cluster
from cassandra.concurrent import execute_concurrent_with_args
from cassandra.query import tuple_factory

from infra.cassandra.session import PROTOCOL_VERSION, Session
from infra.cli.init import initialise
from infra.devserver.cassandra import EmbeddedCassandra
from infra.devserver.kafka import EmbeddedKafka
from infra.devserver.servers import EmbeddedServers
from infra.settings import Settings
from streams.events.base import HEADERS, utc_now
from streams.events.images import ImageProcessed
from streams.events.requests import RequestCreated
from streams.log.reader import LogReader
from streams.log.topics import Topics
from streams.progress.partition_log import PartitionLog
from streams.progress.rebuild import Rebuild
from streams.projections.history import History
from streams.projections.rebuild import WRITES_IN_FLIGHT, rebuild_history
from streams.webhooks.store import Deliveries
from tests.bench.report import Row, progress

EVENTS = 100_000
RAW_ROWS = 20_000
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
    records = 0
    async with LogReader.open(settings) as reader:
        rebuilt = Rebuild(PartitionLog(settings, reader, 0))
        async for batch in rebuilt.batches(()):
            records += len(batch.shadow.records)
    assert records == EVENTS // 1000 + 1, "not every image was folded in"
    return rebuilt.events / (time.perf_counter() - started)


async def history_written(settings: Settings, session: Session) -> float:
    """Events per second of a rebuild of the whole history."""
    started = time.perf_counter()
    deliveries = Deliveries(session, settings.partitions)
    report = await rebuild_history(settings, History(session), deliveries, None, lambda *_: None)
    return report.events / (time.perf_counter() - started)


def rows_written(settings: Settings) -> float:
    """Events per second if the driver does nothing but write the rows that the history made of them, from memory."""
    host, _, port = str(settings.cassandra_hosts).partition(":")
    with Cluster([host], int(port), protocol_version=PROTOCOL_VERSION) as cluster:
        session = cluster.connect(settings.cassandra_keyspace)
        session.row_factory = tuple_factory
        writes = []
        for table in ("images_by_request", "images_by_product_month"):
            found = session.execute(f"SELECT * FROM {table} LIMIT {RAW_ROWS}", timeout=60)
            names = ", ".join(found.column_names)
            places = ", ".join("?" * len(found.column_names))
            writes.append((session.prepare(f"INSERT INTO {table} ({names}) VALUES ({places})"), list(found)))
        started = time.perf_counter()
        for statement, rows in writes:
            assert len(rows) == RAW_ROWS
            execute_concurrent_with_args(session, statement, rows, concurrency=WRITES_IN_FLIGHT)
        return RAW_ROWS / (time.perf_counter() - started)


async def run() -> list[Row]:
    folds: tuple[list[float], list[float]] = ([], [])
    writes: tuple[list[float], list[float]] = ([], [])
    with tempfile.TemporaryDirectory() as folder:
        kafka, cassandra = EmbeddedKafka(Path(folder)), EmbeddedCassandra(Path(folder))
        async with EmbeddedServers(kafka, cassandra):
            settings = Settings(kafka_brokers=kafka.address, cassandra_hosts=cassandra.address, partitions=1)
            await initialise(settings)
            await fill(settings)
            for number in range(ROUNDS):
                progress(f"replay of progress: round {number + 1} of {ROUNDS}")
                folds[0].append(await folded(settings))
                folds[1].append(await raw(settings))
            session = await Session.connect(settings)
            try:
                await history_written(settings, session)  # Java compiles what it runs often
                for number in range(ROUNDS):
                    progress(f"replay of the history: round {number + 1} of {ROUNDS}")
                    writes[0].append(await history_written(settings, session))
                    writes[1].append(await asyncio.to_thread(rows_written, settings))
            finally:
                await session.close()
    return [
        Row(f"replay progress: {EVENTS:,} results", "events/s", *folds, "getmany and a JSON parser", aim=0.3),
        Row(f"replay history: {EVENTS:,} results", "events/s", *writes, "the driver writing the same rows"),
    ]


def measure() -> Iterator[Row]:
    yield from asyncio.run(run())
