"""Requests of photos, end to end, beside the raw loop over the same photos."""

import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from PIL import Image

from tests.bench import raw_loop
from tests.bench.processes import COMPRESSING, cpu_seconds, watched_memory
from tests.bench.raw_loop import Measured
from tests.bench.report import Row
from tests.e2e.conftest import start_system, stop_system
from tests.support.published_clients import call, upload
from tests.support.shop import Shop, photo

ROUNDS = 3
WARM_UP = 200  # images: Java compiles what it runs often
PHOTOS = Path(os.environ.get("TEST_SHARED", Path(__file__).parents[3] / "shared")) / "photos"
TIME_LIMIT = 300.0
OURS, PLAIN, OPTIMISED = "shrinkstream, end to end", "raw loop, plain", "raw loop, optimised"

_runs = count()


@dataclass(frozen=True)
class PhotoSet:
    """Photos between two sizes, in megapixels, and made ones of ``size`` pixels where there are none."""

    name: str
    images: int
    smallest: float
    largest: float
    size: tuple[int, int]
    aim: float


SETS = (
    PhotoSet("0.3 MP", 2_000, 0.2, 0.5, (640, 480), aim=0.5),
    PhotoSet("3 MP", 400, 0.0, 16.0, (2048, 1536), aim=1.0),
)


@dataclass
class Run:
    """One run of the system: what it took, by role, and for how many images."""

    measured: Measured
    cpu_by_role: Counter[str] = field(default_factory=Counter)


def photos(shop: Shop, wanted: PhotoSet) -> list[str]:
    """The URLs of the photos that a set is made of: real ones where there are any."""
    sized = {file: _megapixels(file) for file in sorted(PHOTOS.glob("*.jpg"))}
    files = [file for file, megapixels in sized.items() if wanted.smallest <= megapixels <= wanted.largest]
    if not files:
        print(f"no photos of {wanted.name} at {PHOTOS} (set TEST_SHARED): made ones are used")
        return [shop.add(f"{wanted.name[0]}-{number}.jpg", photo(*wanted.size, number)) for number in range(20)]
    return [shop.add(file.name, file.read_bytes()) for file in files]


def through_the_system(url: str, root: int, images: list[str]) -> Run:
    """From the first byte of the upload to `completed`. No URL comes twice: each image is fetched and shrunk."""
    run = next(_runs)
    rows = "".join(f"{number},Photo {number},{image}?{run}-{number}\n" for number, image in enumerate(images, 1))
    before = cpu_seconds(root)
    started = time.perf_counter()
    with watched_memory(root) as memory:
        request_id = upload(url, "S. No.,Product Name,Input Image URLs\n" + rows)
        while True:
            status = call(url, "GET", f"/api/status/{request_id}").json
            if status["status"] == "completed":
                break
            if time.perf_counter() - started > TIME_LIMIT:
                raise SystemExit(f"not completed within {TIME_LIMIT:g} s: {status}")
            time.sleep(0.05)
        seconds = time.perf_counter() - started
    assert status["failed"] == 0, status
    used = cpu_seconds(root)
    used.subtract(before)
    peak = max(sum(sample[role] for role in COMPRESSING) for sample in memory)
    return Run(Measured(seconds, used.total(), peak, status["outputBytes"]), used)


def measure() -> Iterator[Row]:
    for wanted in SETS:
        with Shop() as shop, tempfile.TemporaryDirectory() as folder:
            urls = photos(shop, wanted)
            images = [urls[number % len(urls)] for number in range(wanted.images)]
            environment = {**os.environ, "SHRINKSTREAM_FETCH_ALLOW": shop.address}
            process, url = start_system(environment, "--port", "0", "--data-dir", f"{folder}/system")
            try:
                through_the_system(url, process.pid, images[:WARM_UP])
                runs = _rounds(url, process.pid, images, Path(folder))
            finally:
                stop_system(process)
        yield from _rows(wanted, runs)


def _rounds(url: str, root: int, images: list[str], folder: Path) -> dict[str, list[Run]]:
    """Each way in turn, round after round, so that a change of the machine's speed meets all of them."""
    runs: dict[str, list[Run]] = {OURS: [], PLAIN: [], OPTIMISED: []}
    for _ in range(ROUNDS):
        runs[OURS].append(through_the_system(url, root, images))
        for name in (PLAIN, OPTIMISED):
            measured = raw_loop.measure(images, folder, optimize=name == OPTIMISED, timeout=TIME_LIMIT)
            runs[name].append(Run(measured))
    return runs


def _rows(wanted: PhotoSet, runs: Mapping[str, list[Run]]) -> Iterator[Row]:
    def each(name: str, figure: Callable[[Measured], float]) -> list[float]:
        return [figure(run.measured) for run in runs[name]]

    def rate(measured: Measured) -> float:
        return wanted.images / measured.seconds

    def cpu(measured: Measured) -> float:
        return measured.cpu_seconds / wanted.images * 1e3

    ours, title = runs[OURS], f"{wanted.name} photos"
    yield Row(
        f"{title}: upload to completed", "images/s", each(OURS, rate), each(PLAIN, rate), "raw Pillow loop", wanted.aim
    )
    yield Row(
        f"{title}: against our own codec settings",
        "images/s",
        each(OURS, rate),
        each(OPTIMISED, rate),
        "raw Pillow loop, optimize=True",
    )
    yield Row(
        f"{title}: processor time, all processes",
        "ms/image",
        each(OURS, cpu),
        each(PLAIN, cpu),
        "raw Pillow loop",
        more_is_better=False,
    )
    for role in sorted(ours[0].cpu_by_role, key=lambda role: -ours[0].cpu_by_role[role]):
        spent = [run.cpu_by_role[role] / wanted.images * 1e3 for run in ours]
        yield Row(f"{title}:   of it {role}", "ms/image", spent, more_is_better=False)
    yield Row(
        f"{title}: bytes out",
        "KB/image",
        each(OURS, lambda measured: measured.output_bytes / wanted.images / 1e3),
        each(PLAIN, lambda measured: measured.output_bytes / wanted.images / 1e3),
        "raw Pillow loop",
        more_is_better=False,
    )
    # Pages that the processes share are counted for each of them.
    yield Row(
        f"{title}: most memory of compress and its decoders",
        "MB",
        each(OURS, lambda measured: measured.peak_bytes / 1e6),
        each(PLAIN, lambda measured: measured.peak_bytes / 1e6),
        "raw Pillow loop",
        more_is_better=False,
    )


def _megapixels(file: Path) -> float:
    with Image.open(file) as image:
        return image.width * image.height / 1e6
