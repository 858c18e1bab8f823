"""A request of real photos, end to end, beside the raw loop over the same photos."""

import asyncio
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from tests.bench import raw_loop
from tests.e2e.conftest import start_system, stop_system
from tests.e2e.published_clients import call, upload
from tests.e2e.shop import Shop, photo

IMAGES = 200
ROUNDS = 3
PHOTOS = Path(os.environ.get("TEST_SHARED", Path(__file__).parents[3] / "shared")) / "photos"
TIME_LIMIT = 300.0


def photos(shop: Shop) -> list[str]:
    """The URLs of the photos that the request is made of: real ones where there are any."""
    files = sorted(PHOTOS.glob("*.jpg"))
    if not files:
        print(f"no photos at {PHOTOS} (set TEST_SHARED): made ones are used")
        return [shop.add(f"{number}.jpg", photo(1600, 1200, number)) for number in range(20)]
    return [shop.add(file.name, file.read_bytes()) for file in files]


def through_the_system(url: str, images: list[str]) -> float:
    """Images per second from the first byte of the upload to `completed`."""
    rows = "".join(f"{number},Photo {number},{image}\n" for number, image in enumerate(images, 1))
    started = time.perf_counter()
    request_id = upload(url, "S. No.,Product Name,Input Image URLs\n" + rows)
    while True:
        status = call(url, "GET", f"/api/status/{request_id}").json
        if status["status"] == "completed":
            break
        if time.perf_counter() - started > TIME_LIMIT:
            raise SystemExit(f"not completed within {TIME_LIMIT:g} s: {status}")
        time.sleep(0.02)
    assert status["failed"] == 0, status
    return len(images) / (time.perf_counter() - started)


def main() -> None:
    with Shop() as shop, tempfile.TemporaryDirectory() as folder:
        urls = photos(shop)
        images = [urls[number % len(urls)] for number in range(IMAGES)]
        megapixels = statistics.mean(_megapixels(shop.files[url.rpartition("/")[2]]) for url in images)
        environment = {**os.environ, "SHRINKSTREAM_FETCH_ALLOW": shop.address}
        process, url = start_system(environment, "--port", "0", "--data-dir", f"{folder}/system")
        try:
            rates = _rounds(
                {
                    "shrinkstream, end to end": lambda: through_the_system(url, images),
                    "raw loop, plain": lambda: asyncio.run(raw_loop.run(images, Path(folder), optimize=False)),
                    "raw loop, optimised": lambda: asyncio.run(raw_loop.run(images, Path(folder), optimize=True)),
                }
            )
        finally:
            stop_system(process)
    print(f"{IMAGES} images of {megapixels:.2f} MP on average, {ROUNDS} rounds in turn, median images/s (spread)")
    ours = rates["shrinkstream, end to end"]
    for name, values in rates.items():
        ratio = statistics.median(mine / theirs for mine, theirs in zip(ours, values, strict=True))
        against = "" if values is ours else f"  ratio of ours to it {ratio:.2f}"
        print(f"  {name:28} {statistics.median(values):6.1f}  ({min(values):.1f} to {max(values):.1f}){against}")


def _rounds(runs: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Each run in turn, round after round, so that a change of the machine's speed meets all of them."""
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            rates[name].append(run())
    return rates


def _megapixels(content: bytes) -> float:
    with Image.open(io.BytesIO(content)) as image:
        return image.width * image.height / 1e6
