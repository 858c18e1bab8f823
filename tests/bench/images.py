"""Requests of photos, end to end, beside the raw loop over the same photos."""

import io
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count, cycle, islice
from pathlib import Path

from PIL import Image

from tests.bench import raw_loop
from tests.bench.raw_loop import Measured
from tests.bench.report import Row, progress
from tests.bench.system import COMPRESSING, complete, cpu_seconds, kafka_bytes, watched_memory
from tests.e2e.conftest import start_system, stop_system
from tests.support.shop import Shop, photo

ROUNDS = 3
WARM_UP = 800  # images: Java compiles methods that run often
SHARED = Path(os.environ.get("TEST_SHARED", Path(__file__).parents[3] / "shared"))
TIME_LIMIT = 300.0
OURS, PLAIN, OPTIMISED = "shrinkstream, end to end", "raw loop, plain", "raw loop, optimised"

_runs = count()


@dataclass(frozen=True)
class PhotoSet:
    """Files of ``SHARED`` between two sizes, in megapixels; generated ones of ``size`` pixels where there are none."""

    name: str
    files: str
    images: int
    smallest: float
    largest: float
    size: tuple[int, int]
    aim: float | None


SETS = (
    PhotoSet("0.3 MP photos", "photos/*.jpg", 2_000, 0.2, 0.5, (640, 480), aim=0.5),
    PhotoSet("3 MP photos", "photos/*.jpg", 400, 0.0, 16.0, (2048, 1536), aim=1.0),
    PhotoSet("0.3 MP PNG", "formats/*.png", 200, 0.1, 0.6, (640, 480), aim=None),
)


@dataclass
class Run:
    """One run: its cost, by role where it was the system's, and bytes on Kafka by topic."""

    measured: Measured
    cpu_by_role: Counter[str] = field(default_factory=Counter)
    kafka_bytes: Counter[str] = field(default_factory=Counter)


def photos(shop: Shop, wanted: PhotoSet) -> list[str]:
    """The URLs of the photos of a set."""
    sized = {file: _megapixels(file) for file in sorted(SHARED.glob(wanted.files))}
    files = [file for file, megapixels in sized.items() if wanted.smallest <= megapixels <= wanted.largest]
    if files:
        return [shop.add(file.name, file.read_bytes()) for file in files]
    progress(f"no {wanted.name} at {SHARED} (set TEST_SHARED): generated ones are used")
    ending = wanted.files.rpartition(".")[2]
    made = [photo(*wanted.size, number) for number in range(20)]
    return [
        shop.add(f"{number}.{ending}", _as_png(content) if ending == "png" else content)
        for number, content in enumerate(made)
    ]


def through_the_system(url: str, root: int, images: list[str], data_dir: Path = Path("/nowhere")) -> Run:
    """From the first byte of the upload to `completed`. No URL comes twice: each image is fetched and shrunk."""
    run = next(_runs)
    rows = "".join(f"{number},Photo {number},{image}?{run}-{number}\n" for number, image in enumerate(images, 1))
    cpu, written = cpu_seconds(root), kafka_bytes(data_dir)
    with watched_memory(root) as memory:
        seconds, status = complete(url, "S. No.,Product Name,Input Image URLs\n" + rows, TIME_LIMIT)
    used, wrote = cpu_seconds(root), kafka_bytes(data_dir)
    used.subtract(cpu)
    wrote.subtract(written)
    peak = max(sum(sample[role] for role in COMPRESSING) for sample in memory)
    return Run(Measured(seconds, used.total(), peak, status["outputBytes"]), used, wrote)


def measure() -> Iterator[Row]:
    for wanted in SETS:
        with Shop() as shop, tempfile.TemporaryDirectory() as folder:
            urls = list(islice(cycle(photos(shop, wanted)), max(WARM_UP, wanted.images)))
            environment = {**os.environ, "SHRINKSTREAM_FETCH_ALLOW": shop.address}
            data_dir = Path(folder) / "system"
            process, url = start_system(environment, "--port", "0", "--data-dir", str(data_dir))
            try:
                progress(f"{wanted.name}: warm-up of {WARM_UP} images")
                through_the_system(url, process.pid, urls[:WARM_UP])
                runs = _rounds(url, process.pid, wanted, urls[: wanted.images], data_dir)
            finally:
                stop_system(process)
        yield from _rows(wanted, runs)


def _rounds(url: str, root: int, wanted: PhotoSet, images: list[str], data_dir: Path) -> dict[str, list[Run]]:
    """Each way in turn, round after round, so that a change of the machine's speed affects all of them."""
    runs: dict[str, list[Run]] = {OURS: [], PLAIN: [], OPTIMISED: []}
    for number in range(1, ROUNDS + 1):
        for name, done in runs.items():
            if name == OURS:
                done.append(through_the_system(url, root, images, data_dir))
            else:
                optimize = name == OPTIMISED
                done.append(Run(raw_loop.measure(images, data_dir.parent, optimize=optimize, timeout=TIME_LIMIT)))
            rate = len(images) / done[-1].measured.seconds
            progress(f"{wanted.name}: round {number} of {ROUNDS}, {name}: {rate:.0f} images/s")
    return runs


def _rows(wanted: PhotoSet, runs: Mapping[str, list[Run]]) -> Iterator[Row]:
    def each(name: str, figure: Callable[[Measured], float]) -> list[float]:
        return [figure(run.measured) for run in runs[name]]

    def rate(measured: Measured) -> float:
        return wanted.images / measured.seconds

    def cpu(measured: Measured) -> float:
        return measured.cpu_seconds / wanted.images * 1e3

    ours, title = runs[OURS], wanted.name
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
    for topic in sorted(ours[0].kafka_bytes, key=lambda topic: -ours[0].kafka_bytes[topic]):
        written = [run.kafka_bytes[topic] / wanted.images for run in ours]
        if max(written) >= 1:
            yield Row(f"{title}: on Kafka, {topic}", "bytes/image", written, more_is_better=False)
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


def _as_png(content: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(content)).save(buffer, "PNG")
    return buffer.getvalue()


def _megapixels(file: Path) -> float:
    with Image.open(file) as image:
        return image.width * image.height / 1e6
