"""What an image costs as requests grow, a small request beside a large one, memory at rest and at most, start-up.

The images are known to the compress worker already, so that it copies its results: all the rest is as ever. What is
measured is the cost around the codec, which for 100,000 images would take most of the time.
"""

import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen

from tests.bench.processes import cpu_seconds, resident_bytes, watched_memory
from tests.bench.report import Row
from tests.e2e.conftest import start_system, stop_system
from tests.support.published_clients import call, upload
from tests.support.shop import Shop

# Images of a request, and how many requests one after another.
SIZES = ((100, 20), (1_000, 5), (10_000, 1), (100_000, 1))
COMPARED, LARGEST = 1_000, 100_000
CHANGELOG = "progress-requests-changelog"
FILES = 10
SMALL = 3  # images
ALONE = 10  # requests
EVERY = 5.0  # seconds between two small requests beside the large one
REST_SECONDS = 10.0
TIME_LIMIT = 900.0
READY_AIM = 20.0  # seconds


@dataclass
class Cost:
    """What the requests of one size took."""

    images: int
    stored: int  # images on the disk, with those that the worker was shown before
    seconds: float = 0.0
    cpu_by_role: Counter[str] = field(default_factory=Counter)
    kafka_bytes: Counter[str] = field(default_factory=Counter)
    cassandra_bytes: int = 0
    peak_by_role: Counter[str] = field(default_factory=Counter)
    small: list[float] = field(default_factory=list)


def complete(url: str, csv: str, timeout: float = TIME_LIMIT) -> float:
    """Seconds from the first byte of the upload to `completed`."""
    started = time.perf_counter()
    request_id = upload(url, csv)
    while True:
        status = call(url, "GET", f"/api/status/{request_id}").json
        seconds = time.perf_counter() - started
        if status["status"] == "completed":
            assert status["failed"] == 0, status
            return seconds
        if seconds > timeout:
            raise SystemExit(f"not completed within {timeout:g} s: {status}")
        time.sleep(0.05)


def table(urls: list[str], images: int) -> str:
    rows = (f"{number},Product {number},{urls[number % len(urls)]}\n" for number in range(images))
    return "S. No.,Product Name,Input Image URLs\n" + "".join(rows)


class Bench:
    """One data directory, on which the system is started again and again."""

    def __init__(self, shop: Shop, folder: Path) -> None:
        self._environment = {**os.environ, "SHRINKSTREAM_FETCH_ALLOW": shop.address}
        self._folder = folder
        self._shop = shop
        self.urls = [shop.add(f"known-{number}.jpg") for number in range(FILES)]
        self.ready_seconds: list[float] = []

    @contextmanager
    def running(self) -> Iterator[tuple["Popen[str]", str]]:
        started = time.perf_counter()
        process, url = start_system(self._environment, "--port", "0", "--data-dir", str(self._folder))
        self.ready_seconds.append(time.perf_counter() - started)
        try:
            yield process, url
        finally:
            stop_system(process)

    def small_request(self, url: str, number: int) -> float:
        """Seconds of a request whose images nobody knows."""
        return complete(url, table([f"{known}?small={number}" for known in self.urls], SMALL))

    def cost(self, size: int, times: int) -> Cost:
        cost = Cost(size * times, size * times + COMPARED)
        disk = self._kafka_bytes(), self._cassandra_bytes()
        with self.running() as (process, url):
            complete(url, table(self.urls, COMPARED))  # the worker has to know the images, and Java its work
            before = cpu_seconds(process.pid)
            with watched_memory(process.pid) as memory, self._small_ones_beside(url, cost):
                started = time.perf_counter()
                for _ in range(times):
                    complete(url, table(self.urls, size))
                cost.seconds = time.perf_counter() - started
            cost.cpu_by_role = cpu_seconds(process.pid)
            cost.cpu_by_role.subtract(before)
            for sample in memory:
                cost.peak_by_role |= sample
        # Cassandra has written its memory to its tables when it was stopped.
        cost.kafka_bytes = self._kafka_bytes()
        cost.kafka_bytes.subtract(disk[0])
        cost.cassandra_bytes = self._cassandra_bytes() - disk[1]
        return cost

    @contextmanager
    def _small_ones_beside(self, url: str, cost: Cost) -> Iterator[None]:
        """Begin a small request every few seconds, as long as the block lasts."""
        stop = threading.Event()

        def ask() -> None:
            while not stop.wait(EVERY):
                cost.small.append(self.small_request(url, time.monotonic_ns()))

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        try:
            yield
        finally:
            stop.set()
            asking.join(TIME_LIMIT)

    def _kafka_bytes(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for file in (self._folder / "kafka" / "data").glob("shrinkstream*/*.log"):
            topic = file.parent.name.rpartition("-")[0].partition("shrinkstream")[2][1:]
            found[topic] += file.stat().st_size
        return found

    def _cassandra_bytes(self) -> int:
        tables = (self._folder / "cassandra" / "data" / "shrinkstream").rglob("*")
        return sum(file.stat().st_size for file in tables if file.is_file())


def at_rest(bench: Bench) -> Iterator[Row]:
    """A fresh system: start-up, memory and processor while nothing is asked of it; then small requests alone."""
    with bench.running() as (process, url):
        alone = [bench.small_request(url, number) for number in range(ALONE)]
        time.sleep(REST_SECONDS)
        before = cpu_seconds(process.pid)
        time.sleep(REST_SECONDS)
        used = cpu_seconds(process.pid)
        used.subtract(before)
        resident = resident_bytes(process.pid)
    yield Row("`up` on an empty folder: ready", "s", bench.ready_seconds[:1], more_is_better=False)
    yield Row(f"a request of {SMALL} images, alone", "s", alone, more_is_better=False)
    for role, size in resident.most_common():
        yield Row(f"at rest: {role}", "MB", [size / 1e6], more_is_better=False)
    for role, seconds in used.most_common():
        yield Row(f"at rest: {role}", "% of a core", [seconds / REST_SECONDS * 100], more_is_better=False)


def rows_of(size: int, cost: Cost, compared: Cost) -> Iterator[Row]:
    """The cost of an image in requests of one size, held against that in requests of another."""

    def row(what: str, unit: str, figure: Callable[[Cost], float], aim: float | None = None) -> Row:
        limit = figure(compared)
        limits = [limit] if cost is not compared and limit else []
        against = f"in a request of {COMPARED:,}" if limits else ""
        aim = aim if size == LARGEST else None
        return Row(
            f"image in a request of {size:,}: {what}", unit, [figure(cost)], limits, against, aim, more_is_better=False
        )

    def spent_by(role: str) -> Callable[[Cost], float]:
        return lambda of: of.cpu_by_role[role] / of.images * 1e3

    def written_to(topic: str) -> Callable[[Cost], float]:
        return lambda of: of.kafka_bytes[topic] / of.stored

    yield Row(f"image in a request of {size:,}: rate", "images/s", [cost.images / cost.seconds])
    yield row("processor time around the codec", "ms", lambda of: of.cpu_by_role.total() / of.images * 1e3, aim=1.1)
    for role in [role for role, seconds in cost.cpu_by_role.most_common() if seconds > 0]:
        yield row(f"  of it {role}", "ms", spent_by(role))
    yield row("changelog", "bytes", written_to(CHANGELOG), aim=1.1)
    yield row("all topics", "bytes", lambda of: of.kafka_bytes.total() / of.stored)
    for topic in ("image-requests", "image-results"):
        yield row(f"  of it {topic}", "bytes", written_to(topic))
    yield row("Cassandra, compressed", "bytes", lambda of: of.cassandra_bytes / of.stored, aim=1.1)


def measure() -> Iterator[Row]:
    with Shop() as shop, tempfile.TemporaryDirectory() as folder:
        bench = Bench(shop, Path(folder))
        rest = list(at_rest(bench))
        yield from rest
        alone = next(row for row in rest if row.name.startswith(f"a request of {SMALL}"))
        costs = {size: bench.cost(size, times) for size, times in SIZES}
        for size, cost in costs.items():
            yield from rows_of(size, cost, costs[COMPARED])
        cost = costs[LARGEST]
        yield Row(
            f"a request of {SMALL} images, beside one of {LARGEST:,}",
            "s",
            cost.small,
            [alone.value] * len(cost.small),
            "alone",
            more_is_better=False,
        )
        for role, size in cost.peak_by_role.most_common():
            yield Row(f"during {LARGEST:,} images, at most: {role}", "MB", [size / 1e6], more_is_better=False)
        yield Row(
            "`up` again on the same folder: ready", "s", bench.ready_seconds[1:], aim=READY_AIM, more_is_better=False
        )
