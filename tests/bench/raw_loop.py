"""The limit: aiohttp downloads, Pillow in two threads, files on the disk, and nothing else."""

import asyncio
import io
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiohttp
from PIL import Image

THREADS = 2
DOWNLOADS = 32


def shrink_to_file(content: bytes, path: Path, *, optimize: bool) -> None:
    image = Image.open(io.BytesIO(content))
    with path.open("wb") as file:  # to a real file: Pillow lets go of the GIL
        (image if image.mode in ("RGB", "L") else image.convert("RGB")).save(
            file, "JPEG", quality=50, optimize=optimize
        )


async def run(urls: list[str], folder: Path, *, optimize: bool) -> float:
    """Images per second."""
    loop = asyncio.get_running_loop()
    slots = asyncio.Semaphore(DOWNLOADS)
    started = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as threads:
        async with aiohttp.ClientSession() as session:

            async def one(number: int, url: str) -> None:
                async with slots:
                    async with session.get(url) as response:
                        content = await response.read()
                    path = folder / f"{number}.jpg"
                    await loop.run_in_executor(threads, lambda: shrink_to_file(content, path, optimize=optimize))

            await asyncio.gather(*(one(number, url) for number, url in enumerate(urls)))
    return len(urls) / (time.perf_counter() - started)
