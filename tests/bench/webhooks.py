"""Webhooks: delays beside bad receivers, deliveries over kill -9, and what waiting costs.

The projections worker runs as a process, on completions written to the topic; the receivers are in this one.
"""

import asyncio
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import psutil
from aiohttp import web

from infra.cli.init import initialise
from infra.devserver.cassandra import EmbeddedCassandra
from infra.devserver.kafka import EmbeddedKafka
from infra.devserver.servers import EmbeddedServers
from infra.settings import Settings
from streams.events.base import utc_now
from streams.events.requests import RequestCompleted
from streams.log.producer import EventLog
from streams.log.reader import LogReader
from streams.log.topics import Topics
from streams.webhooks.message import completion_id
from tests.bench.report import Row, progress
from tests.support.worker_process import ProjectionsWorker

COMPLETIONS = 1000
COMPLETION_SECONDS = 50.0
HOSTS = 100  # of either kind
KILLED = 200
KILLS = 4
WAITING = 10_000
LOOK_SECONDS = 20
LIMIT = 240.0  # seconds of each part


class Receivers:
    """Many hosts, each an address of the loopback network, and one server behind them all."""

    def __init__(self) -> None:
        self.port = 0
        self.arrived: dict[str, list[datetime]] = {}
        self.confirmed: Counter[str] = Counter()
        self.posts = 0

    async def _receive(self, request: web.Request) -> web.Response:
        now = datetime.now(UTC)
        webhook_id = request.headers["webhook-id"]
        self.posts += 1
        arrivals = self.arrived.setdefault(webhook_id, [])
        arrivals.append(now)
        match request.path:
            case "/silent":
                await asyncio.sleep(30)
                return web.Response(status=500)
            case "/later":
                return web.Response(status=503, headers={"Retry-After": "3600"})
            case "/second":
                await asyncio.sleep(0.2)
                if len(arrivals) == 1:
                    return web.Response(status=500)
        self.confirmed[webhook_id] += 1
        return web.Response(status=204)

    @asynccontextmanager
    async def listening(self, addresses: Sequence[str]) -> AsyncIterator["Receivers"]:
        app = web.Application()
        app.router.add_post("/{path}", self._receive)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        assert runner.server is not None
        server = await asyncio.get_running_loop().create_server(runner.server, addresses[0], 0, backlog=1000)
        self.port = server.sockets[0].getsockname()[1]
        others = await asyncio.get_running_loop().create_server(runner.server, addresses[1:], self.port, backlog=1000)
        try:
            yield self
        finally:
            server.close()
            others.close()
            await runner.cleanup()


def address(number: int) -> str:
    return f"127.{1 + number // 65025}.{number // 255 % 255}.{1 + number % 255 % 254}"


def completions(urls: Iterable[str]) -> list[RequestCompleted]:
    return [
        RequestCompleted(
            request_id=str(uuid4()),
            total=1,
            succeeded=1,
            failed=0,
            input_bytes=1,
            output_bytes=1,
            created_at=utc_now(),
            webhook_url=url,
            output_csv_url="http://127.0.0.1/x",
            output_csv_path="x",
        )
        for url in urls
    ]


async def write(settings: Settings, events: Sequence[RequestCompleted], *, seconds: float = 0) -> dict[str, datetime]:
    """Write completions, at once or evenly over some seconds; returns when each one happened, by its message's id."""
    log = EventLog(settings)
    await log.start()
    try:
        happened: dict[str, datetime] = {}
        began = time.monotonic()
        written = []
        for number, event in enumerate(events):
            if (early := began + seconds * number / len(events) - time.monotonic()) > 0:
                await asyncio.sleep(early)
            happened[completion_id(event.request_id, 0)] = now = utc_now()
            written.append(await log.enqueue(event.model_copy(update={"time": now})))
        await asyncio.gather(*written)
        return happened
    finally:
        await log.stop()


async def until(question: Callable[[], bool], timeout: float = LIMIT) -> bool:
    """Whether the answer becomes yes in time."""
    deadline = time.monotonic() + timeout
    while not question():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.05)
    return True


async def delays(settings: Settings, *, bad: bool) -> list[float]:
    """Seconds from completion to arrival at each good receiver; half of all receivers are good if ``bad``."""
    progress(f"{COMPLETIONS} webhooks{', half of the receivers dead or silent' * bad}")
    receivers = Receivers()
    good, silent = [address(n) for n in range(HOSTS)], [address(n) for n in range(HOSTS, HOSTS * 3 // 2)]
    dead = [address(n) for n in range(HOSTS * 3 // 2, HOSTS * 2)]
    async with receivers.listening([*good, *silent]):
        urls = []
        for number in range(COMPLETIONS):
            half = number // 2
            if number % 2 == 0 or not bad:
                urls.append(f"http://{good[half % HOSTS]}:{receivers.port}/good")
            elif half % 2:
                urls.append(f"http://{silent[half // 2 % len(silent)]}:{receivers.port}/silent")
            else:
                urls.append(f"http://{dead[half // 2 % len(dead)]}:{receivers.port}/dead")
        happened = await write(settings, completions(urls), seconds=COMPLETION_SECONDS)
        wanted = COMPLETIONS // 2 if bad else COMPLETIONS
        await until(lambda: len(receivers.confirmed) >= wanted)
        assert len(receivers.confirmed) >= wanted, f"{len(receivers.confirmed)} of {wanted} arrived"
        return [(receivers.arrived[one][0] - happened[one]).total_seconds() for one in receivers.confirmed]


async def over_kills(settings: Settings, worker: ProjectionsWorker) -> float:
    """Each receiver refuses the first attempt; the worker is killed in between, again and again.

    Returns how many messages were confirmed more than once.
    """
    progress(f"{KILLED} webhooks, {KILLS} kill -9")
    receivers = Receivers()
    chance = random.Random(7)
    hosts = [address(n) for n in range(20)]
    async with receivers.listening(hosts):
        await write(settings, completions(f"http://{hosts[n % 20]}:{receivers.port}/second" for n in range(KILLED)))
        await until(lambda: receivers.posts >= KILLED // 4)
        for _ in range(KILLS):
            worker.kill()
            worker.start_again()
            await asyncio.sleep(chance.uniform(3, 8))
        done = await until(lambda: len(receivers.confirmed) >= KILLED)
        await asyncio.sleep(2)
    assert done, f"{len(receivers.confirmed)} of {KILLED} were confirmed"
    return float(sum(times > 1 for times in receivers.confirmed.values()))


async def cost(worker: ProjectionsWorker) -> tuple[float, float]:
    """Megabytes and percent of a core of the worker while it has nothing to do."""
    process = psutil.Process(worker.process.pid)
    before = sum(process.cpu_times()[:2])
    await asyncio.sleep(LOOK_SECONDS)
    busy = sum(process.cpu_times()[:2]) - before
    return process.memory_info().rss / 2**20, 100 * busy / LOOK_SECONDS


async def recorded(settings: Settings) -> None:
    """Return when the worker has recorded what it wrote."""
    topics = Topics(settings.topic_prefix)
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        async with LogReader.open(settings) as reader:
            committed = await reader.committed(topics.group("projections"), topics.webhooks)
            ends = await reader.ends(await reader.partitions(topics.webhooks))
        if all(committed.get(partition, 0) >= end for partition, end in ends.items()):
            return
        await asyncio.sleep(1)
    raise TimeoutError("the worker lags behind")


async def waiting(settings: Settings, worker: ProjectionsWorker) -> list[Row]:
    """What ten thousand messages cost that wait for an hour."""
    progress(f"{WAITING:,} waiting webhooks")
    receivers = Receivers()
    hosts = [address(n) for n in range(50)]
    none = await cost(worker)
    async with receivers.listening(hosts):
        started = time.monotonic()
        await write(settings, completions(f"http://{hosts[n % 50]}:{receivers.port}/later" for n in range(WAITING)))
        assert await until(lambda: len(receivers.arrived) >= WAITING), f"{len(receivers.arrived)} were tried"
        rate = WAITING / (time.monotonic() - started)
        await recorded(settings)
        tried = await cost(worker)
        worker.stop()
        worker.start_again()
        await asyncio.sleep(15)
        restarted = await cost(worker)
        assert receivers.posts == WAITING, f"{receivers.posts} POSTs"
    rows = [Row(f"webhooks: {WAITING:,} first attempts", "attempts/s", [rate])]
    for when, (memory, busy) in (("", tried), (" after a restart", restarted)):
        title = f"webhooks: {WAITING:,} waiting{when}"
        rows += [
            Row(f"{title}: memory", "MB", [memory], [none[0]], "none waiting", more_is_better=False),
            Row(f"{title}: processor", "% of a core", [busy], more_is_better=False),
        ]
    return rows


async def ready(settings: Settings) -> None:
    """Return when a completion is delivered."""
    receivers = Receivers()
    async with receivers.listening([address(0), address(1)]):
        await write(settings, completions([f"http://{address(0)}:{receivers.port}/good"]))
        assert await until(lambda: receivers.posts > 0), "the worker sends nothing"


async def run() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        kafka, cassandra = EmbeddedKafka(Path(folder)), EmbeddedCassandra(Path(folder))
        async with EmbeddedServers(kafka, cassandra):
            settings = Settings(
                kafka_brokers=kafka.address,
                cassandra_hosts=cassandra.address,
                data_dir=Path(folder),
                fetch_allow="127.0.0.0/8",
                webhook_schedule="5,3600",
                log_level="WARNING",
            )
            await initialise(settings)
            worker = ProjectionsWorker(settings)
            try:
                await ready(settings)
                rows = await waiting(settings, worker)
                for bad in (False, True):
                    values = sorted(await delays(settings, bad=bad))
                    median, p95 = statistics.median(values), values[int(len(values) * 0.95)]
                    what = "half of the receivers dead or silent" if bad else "all receivers good"
                    title = f"webhooks: {COMPLETIONS} in {COMPLETION_SECONDS:.0f} s, {what}"
                    rows.append(Row(f"{title}: median delay", "s", [median], more_is_better=False))
                    rows.append(Row(f"{title}: p95 delay", "s", [p95], more_is_better=False))
                title = f"webhooks: {KILLED} refused once, {KILLS} kill -9"
                rows.append(
                    Row(
                        f"{title}: confirmed more than once",
                        "messages",
                        [await over_kills(settings, worker)],
                        aim=0,
                        more_is_better=False,
                    )
                )
                return rows
            finally:
                worker.kill()


def measure() -> Iterator[Row]:
    yield from asyncio.run(run())
