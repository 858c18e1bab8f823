"""Requests of photos, end to end, beside the raw loop over the same photos."""

import io
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from PIL import Image

from tests.bench import raw_loop
from tests.bench.processes import COMPRESSING, cpu_seconds, peak_of_compressing
from tests.bench.raw_loop import Measured
from tests.e2e.conftest import start_system, stop_system
from tests.e2e.published_clients import call, upload
from tests.e2e.shop import Shop, photo

ROUNDS = 3
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
    PhotoSet("0.3 MP", 600, 0.2, 0.5, (640, 480), aim=0.5),
    PhotoSet("3 MP", 200, 0.0, 16.0, (2048, 1536), aim=1.0),
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
    with peak_of_compressing(root) as peak:
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
    return Run(Measured(seconds, used.total(), peak[0], status["outputBytes"]), used)


def main() -> None:
    for wanted in SETS:
        with Shop() as shop, tempfile.TemporaryDirectory() as folder:
            urls = photos(shop, wanted)
            images = [urls[number % len(urls)] for number in range(wanted.images)]
            environment = {**os.environ, "SHRINKSTREAM_FETCH_ALLOW": shop.address}
            process, url = start_system(environment, "--port", "0", "--data-dir", f"{folder}/system")
            try:
                through_the_system(url, process.pid, images[:100])  # Java compiles what it runs often
                runs = _rounds(url, process.pid, images, Path(folder))
            finally:
                stop_system(process)
            megapixels = statistics.mean(_megapixels(io.BytesIO(shop.files[url.rpartition("/")[2]])) for url in images)
        _report(wanted, megapixels, runs)


def _rounds(url: str, root: int, images: list[str], folder: Path) -> dict[str, list[Run]]:
    """Each way in turn, round after round, so that a change of the machine's speed meets all of them."""
    runs: dict[str, list[Run]] = {OURS: [], PLAIN: [], OPTIMISED: []}
    for _ in range(ROUNDS):
        runs[OURS].append(through_the_system(url, root, images))
        for name in (PLAIN, OPTIMISED):
            measured = raw_loop.measure(images, folder, optimize=name == OPTIMISED, timeout=TIME_LIMIT)
            runs[name].append(Run(measured))
    return runs


def _report(wanted: PhotoSet, megapixels: float, runs: Mapping[str, list[Run]]) -> None:
    print(f"\n{wanted.images} images of {megapixels:.2f} MP on average, {ROUNDS} rounds in turn, medians (spread)")
    print(f"  {'':26}{'images/s':>21}{'CPU ms/image':>14}{'peak MB':>9}{'KB out':>8}{'ratio of ours to it':>21}")
    ours = runs[OURS]
    for name, each in runs.items():
        rates = [wanted.images / run.measured.seconds for run in each]
        ratio = statistics.median(a.measured.seconds / b.measured.seconds for a, b in zip(each, ours, strict=True))
        cpu = statistics.median(run.measured.cpu_seconds for run in each) / wanted.images * 1e3
        peak = max(run.measured.peak_bytes for run in each) / 1e6
        size = each[0].measured.output_bytes / wanted.images / 1e3
        told = "" if each is ours else f"{ratio:.2f}" + (f" (aim {wanted.aim})" if name == PLAIN else "")
        spread = f"({min(rates):.1f} to {max(rates):.1f})"
        print(f"  {name:26}{statistics.median(rates):6.1f}{spread:>16}{cpu:13.1f}{peak:9.0f}{size:8.0f}{told:>21}")
    by_role = {
        role: statistics.median(run.cpu_by_role[role] for run in ours) / wanted.images * 1e3
        for role in ours[0].cpu_by_role
    }
    print("  where our processor time goes, ms per image: ", end="")
    print(", ".join(f"{role} {spent:.1f}" for role, spent in sorted(by_role.items(), key=lambda item: -item[1])))
    compressing = sum(by_role.get(role, 0.0) for role in COMPRESSING)
    plain = statistics.median(run.measured.cpu_seconds for run in runs[PLAIN]) / wanted.images * 1e3
    print(f"  fetch, shrink and store alone: {compressing:.1f} ms; ratio by processor time {plain / compressing:.2f}")
    print("  (peak: compress worker and its decoders together, pages they share counted for each)")


def _megapixels(file: Path | io.BytesIO) -> float:
    with Image.open(file) as image:
        return image.width * image.height / 1e6


if __name__ == "__main__":
    main()
