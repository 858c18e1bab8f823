"""Uploads of many rows beside a raw producer that writes the same bytes; only the API, Kafka and Cassandra run."""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Iterator
from pathlib import Path

import aiohttp
import psutil
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition

from infra.cli.init import initialise
from infra.devserver.cassandra import EmbeddedCassandra
from infra.devserver.kafka import EmbeddedKafka
from infra.devserver.servers import EmbeddedServers
from infra.kafka.topics import create_topics
from infra.settings import Settings, environment_of
from streams.log.topics import Topics
from tests.bench.report import Row, progress
from tests.bench.system import running_api, seconds_of

SMALL_UPLOADS, SMALL_ROWS = 100, 1_000
LARGE_ROWS = 1_000_000
RAW_EVENTS = 100_000
PARTITIONS = 8
ROUNDS = 3
ASK_EVERY = 0.02  # seconds between two questions for a status
IDLE_SECONDS = 5.0
PATIENCE = aiohttp.ClientTimeout(total=600)
MIB = 1024 * 1024


def table(rows: int) -> bytes:
    lines = (f"{number},Product {number},https://shop.example/images/{number}.jpg\n" for number in range(rows))
    return b"S. No.,Product Name,Input Image URLs\n" + "".join(lines).encode()


def client() -> aiohttp.ClientSession:
    """A client that opens as many connections as are asked for, so that the status never waits for an upload's."""
    return aiohttp.ClientSession(timeout=PATIENCE, connector=aiohttp.TCPConnector(limit=0))


class Watch:
    """Asks for one status again and again and looks at the memory of the API, until what is measured is over."""

    def __init__(self, session: aiohttp.ClientSession, url: str, process: psutil.Process) -> None:
        self._session, self._url, self._process = session, url, process
        self.milliseconds: list[float] = []
        self.peak_bytes = 0

    async def during(self, work: Awaitable[float]) -> float:
        asking = asyncio.create_task(self._ask())
        try:
            return await work
        finally:
            asking.cancel()

    async def _ask(self) -> None:
        while True:
            started = time.perf_counter()
            async with self._session.get(self._url) as answer:
                await answer.read()
                assert answer.status == 200, answer.status
            self.milliseconds.append((time.perf_counter() - started) * 1000)
            self.peak_bytes = max(self.peak_bytes, self._process.memory_info().rss)
            await asyncio.sleep(ASK_EVERY)

    @property
    def p50(self) -> float:
        return statistics.median(self.milliseconds)

    @property
    def p99(self) -> float:
        return statistics.quantiles(self.milliseconds, n=100)[98]


async def post(session: aiohttp.ClientSession, url: str, csv: bytes) -> str:
    async with session.post(f"{url}/api/upload", data=csv, headers={"Content-Type": "text/csv"}) as answer:
        assert answer.status == 202, await answer.text()
        return str((await answer.json())["requestId"])


async def uploads(session: aiohttp.ClientSession, url: str, csvs: list[bytes], rows: int) -> float:
    """Images per second from the first byte that is sent to the last 202."""
    started = time.perf_counter()
    await asyncio.gather(*(post(session, url, csv) for csv in csvs))
    return len(csvs) * rows / (time.perf_counter() - started)


async def raw(settings: Settings) -> tuple[float, float]:
    """A producer that sends the last records of the topic once more, as they are: events/s and CPU us per event."""
    topic = Topics(settings.topic_prefix).image_requests
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka_brokers, max_partition_fetch_bytes=4 * MIB)
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.kafka_brokers,
        acks="all",
        enable_idempotence=True,
        linger_ms=5,
        max_batch_size=128 * 1024,
    )
    await consumer.start()
    await producer.start()
    try:
        partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        consumer.assign(partitions)
        for partition, end in (await consumer.end_offsets(partitions)).items():
            consumer.seek(partition, max(0, end - RAW_EVENTS // PARTITIONS))
        records: list[ConsumerRecord[bytes, bytes]] = []
        while len(records) < RAW_EVENTS * 0.9:
            batches = await consumer.getmany(timeout_ms=500)
            records += [record for batch in batches.values() for record in batch]
        started, worked = time.perf_counter(), time.process_time()
        for record in records:
            await producer.send("raw", record.value, key=record.key, headers=list(record.headers))
        await producer.flush()
        seconds, cpu = time.perf_counter() - started, time.process_time() - worked
        return len(records) / seconds, cpu / len(records) * 1e6
    finally:
        await consumer.stop()
        await producer.stop()


async def run() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        kafka, cassandra = EmbeddedKafka(Path(folder)), EmbeddedCassandra(Path(folder))
        async with EmbeddedServers(kafka, cassandra):
            settings = Settings(
                kafka_brokers=kafka.address,
                cassandra_hosts=cassandra.address,
                data_dir=Path(folder),
                partitions=PARTITIONS,
                log_level="WARNING",
            )
            await initialise(settings)
            await create_topics(settings, {"raw": {}})
            with running_api(environment_of(settings)) as (process, url):
                async with client() as session:
                    return await in_turn(settings, session, process, url)


async def in_turn(settings: Settings, session: aiohttp.ClientSession, process: psutil.Process, url: str) -> list[Row]:
    """Ours and the raw producer by turns: it is measured before and after each of ours, and the mean is the limit."""
    status_url = f"{url}/api/status/{await post(session, url, table(1))}"
    idle = Watch(session, status_url, process)
    await idle.during(asyncio.sleep(IDLE_SECONDS, 0.0))
    small = table(SMALL_ROWS)
    await uploads(session, url, [small] * SMALL_UPLOADS, SMALL_ROWS)  # something to send once more
    rows = [
        Row("status while idle: p50", "ms", [idle.p50], more_is_better=False),
        Row("status while idle: p99", "ms", [idle.p99], more_is_better=False),
        Row("API memory while idle", "MB", [idle.peak_bytes / 1e6], more_is_better=False),
    ]
    before = await raw(settings)
    for name, csvs, each, rounds in (
        (f"{SMALL_UPLOADS} uploads of {SMALL_ROWS:,} rows at once", [small] * SMALL_UPLOADS, SMALL_ROWS, ROUNDS),
        (f"one upload of {LARGE_ROWS:,} rows", [table(LARGE_ROWS)], LARGE_ROWS, 1),
    ):
        watch = Watch(session, status_url, process)
        ours, limits, cpu, cpu_limits = [], [], [], []
        for number in range(rounds):
            progress(f"{name}: round {number + 1} of {rounds}")
            worked = seconds_of(process)
            ours.append(await watch.during(uploads(session, url, csvs, each)))
            cpu.append((seconds_of(process) - worked) / (len(csvs) * each) * 1e6)
            after = await raw(settings)
            limits.append((before[0] + after[0]) / 2)
            cpu_limits.append((before[1] + after[1]) / 2)
            before = after
        rows += [
            Row(name, "events/s", ours, limits, "a raw producer of the same bytes", aim=0.7),
            Row(f"{name}: API processor time", "µs/event", cpu, cpu_limits, "the raw producer", more_is_better=False),
            Row(f"{name}: status p50", "ms", [watch.p50], more_is_better=False),
            Row(f"{name}: status p99", "ms", [watch.p99], aim=50, more_is_better=False),
            Row(f"{name}: most memory of the API", "MB", [watch.peak_bytes / 1e6], more_is_better=False),
        ]
    return rows


def measure() -> Iterator[Row]:
    yield from asyncio.run(run())
