"""The cost of an image as requests grow, a small request beside a large one, memory at rest and at most, start-up.

The compress worker has processed the images before, so it copies its results; everything else is as usual. So the cost
around the codec is measured, which would take most of the time of 100,000 images. A second API process shows the cost
of an image that another one has accepted.
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

from tests.bench.report import Row, progress
from tests.bench.system import (
    complete,
    cpu_seconds,
    environment_of_role,
    kafka_bytes,
    resident_bytes,
    running_api,
    seconds_of,
    watched_memory,
)
from tests.e2e.conftest import start_system, stop_system
from tests.support.shop import Shop

# Images of a request, and how many requests one after another.
SIZES = ((100, 20), (1_000, 5), (10_000, 1), (100_000, 1))
COMPARED, LARGEST = 1_000, 100_000
CHANGELOG = "progress-requests-changelog"
FILES = 10
SMALL = 3  # images
ALONE = 10  # requests
EVERY = 5.0  # seconds between two small requests beside the large one
SETTLING_SECONDS, REST_SECONDS = 10.0, 60.0
REST_AIM = 4.0  # % of a core
FOREIGN_AIM = 0.03  # ms per image
TIME_LIMIT = 900.0
READY_AIM = 20.0  # seconds


@dataclass
class Cost:
    """The cost of the requests of one size."""

    images: int
    stored: int  # images on the disk, including those of the warm-up
    seconds: float = 0.0
    cpu_by_role: Counter[str] = field(default_factory=Counter)
    foreign_api: float = 0.0  # seconds of a second API process
    kafka_bytes: Counter[str] = field(default_factory=Counter)
    cassandra_bytes: int = 0
    peak_by_role: Counter[str] = field(default_factory=Counter)
    small: list[float] = field(default_factory=list)


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
        """Seconds of a request of new images."""
        return complete(url, table([f"{known}?small={number}" for known in self.urls], SMALL), TIME_LIMIT)[0]

    def cost(self, size: int, times: int) -> Cost:
        cost = Cost(size * times, size * times + COMPARED)
        disk = kafka_bytes(self._folder), self._cassandra_bytes()
        progress(f"{times} requests of {size:,} images")
        with (
            self.running() as (process, url),
            running_api(environment_of_role(process.pid, "api")) as (foreign_api, _),
        ):
            complete(url, table(self.urls, COMPARED), TIME_LIMIT)  # the worker caches the images, Java compiles
            before, foreign_before = cpu_seconds(process.pid), seconds_of(foreign_api)
            with watched_memory(process.pid) as memory, self._small_ones_beside(url, cost):
                started = time.perf_counter()
                for _ in range(times):
                    complete(url, table(self.urls, size), TIME_LIMIT)
                cost.seconds = time.perf_counter() - started
            cost.foreign_api = seconds_of(foreign_api) - foreign_before
            cost.cpu_by_role = cpu_seconds(process.pid)
            cost.cpu_by_role.subtract(before)
            for sample in memory:
                cost.peak_by_role |= sample
        # Cassandra has written its memory to its tables when it was stopped.
        cost.kafka_bytes = kafka_bytes(self._folder)
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

    def _cassandra_bytes(self) -> int:
        tables = (self._folder / "cassandra" / "data" / "shrinkstream").rglob("*")
        return sum(file.stat().st_size for file in tables if file.is_file())


def at_rest(bench: Bench) -> Iterator[Row]:
    """A fresh system: start-up, small requests alone, then memory and processor while it is idle."""
    with bench.running() as (process, url):
        alone = [bench.small_request(url, number) for number in range(ALONE)]
        progress(f"idle for {REST_SECONDS:g} s")
        time.sleep(SETTLING_SECONDS)
        before = cpu_seconds(process.pid)
        time.sleep(REST_SECONDS)
        used = cpu_seconds(process.pid)
        used.subtract(before)
        resident = resident_bytes(process.pid)
    yield Row("`up` on an empty folder: ready", "s", bench.ready_seconds[:1], more_is_better=False)
    yield Row(f"a request of {SMALL} images, alone", "s", alone, more_is_better=False)
    for role, size in resident.most_common():
        yield Row(f"at rest: {role}", "MB", [size / 1e6], more_is_better=False)
    busy = used.total() / REST_SECONDS * 100
    yield Row("at rest: processor, all processes", "% of a core", [busy], aim=REST_AIM, more_is_better=False)
    for role, seconds in used.most_common():
        yield Row(f"at rest: processor, {role}", "% of a core", [seconds / REST_SECONDS * 100], more_is_better=False)


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
    foreign = cost.foreign_api / cost.images * 1e3
    yield Row(
        f"image in a request of {size:,}: another API process",
        "ms",
        [foreign],
        aim=FOREIGN_AIM if size == LARGEST else None,
        more_is_better=False,
    )
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
        costs = {COMPARED: bench.cost(COMPARED, dict(SIZES)[COMPARED])}
        for size, times in SIZES:
            if size not in costs:
                costs[size] = bench.cost(size, times)
            yield from rows_of(size, costs[size], costs[COMPARED])
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
