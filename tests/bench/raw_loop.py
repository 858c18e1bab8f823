"""The limit: aiohttp downloads, Pillow in two threads, files on the disk, and nothing else.

``python -m tests.bench.raw_loop FOLDER plain|optimised`` takes the URLs from standard input, one a line, and prints
what it measured as JSON. In a process of its own, so that it shares no interpreter lock with the server of the images.
"""

import asyncio
import io
import json
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp
from PIL import Image

THREADS = 2
DOWNLOADS = 32


@dataclass(frozen=True)
class Measured:
    """What a run took: wall-clock and processor seconds, the most memory, bytes of the results."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    output_bytes: int


def shrink_to_file(content: bytes, path: Path, *, optimize: bool) -> int:
    image: Image.Image = Image.open(io.BytesIO(content))
    encoding = "PNG" if image.format == "PNG" else "JPEG"
    if image.mode not in ("RGB", "L"):
        image = image.convert("RGB")
    if encoding == "PNG":
        image = image.quantize()
    with path.open("wb") as file:  # to a real file: Pillow releases the GIL
        image.save(file, encoding, quality=50, optimize=optimize)
        return file.tell()


async def run(urls: list[str], folder: Path, *, optimize: bool) -> Measured:
    loop = asyncio.get_running_loop()
    slots = asyncio.Semaphore(DOWNLOADS)
    started, cpu_before = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(THREADS) as threads:
        async with aiohttp.ClientSession() as session:

            async def one(number: int, url: str) -> int:
                async with slots:
                    async with session.get(url) as response:
                        content = await response.read()
                    path = folder / f"{number}.jpg"
                    return await loop.run_in_executor(threads, lambda: shrink_to_file(content, path, optimize=optimize))

            sizes = await asyncio.gather(*(one(number, url) for number, url in enumerate(urls)))
    return Measured(
        time.perf_counter() - started,
        time.process_time() - cpu_before,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        sum(sizes),
    )


def measure(urls: list[str], folder: Path, *, optimize: bool, timeout: float) -> Measured:
    """`run` in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.raw_loop", str(folder), "optimised" if optimize else "plain"]
    ended = subprocess.run(command, input="\n".join(urls), capture_output=True, text=True, timeout=timeout, check=True)
    return Measured(**json.loads(ended.stdout))


if __name__ == "__main__":
    measured = asyncio.run(run(sys.stdin.read().split(), Path(sys.argv[1]), optimize=sys.argv[2] == "optimised"))
    print(json.dumps(asdict(measured)))
