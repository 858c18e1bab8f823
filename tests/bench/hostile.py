"""``python -m tests.bench hostile``: what attacks on the compress worker come to, in reason, seconds and memory.

Each is an ImageRequested that the worker's own code works on, with real decoders, against a server on loopback that
misbehaves. The memory is that of this process, which is worker and server in one, and of its decoders.
"""

import asyncio
import gzip
import io
import logging
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import structlog
from PIL import Image

from infra.outbound.addresses import AllowList
from infra.outbound.client import OutboundClient
from infra.settings import Settings
from infra.storage import Storage
from streams.compress.app import Compressor
from streams.compress.cancellations import CancelledRequests
from streams.compress.decoders.pool import DecoderPool
from streams.compress.dedup import RecentResults
from streams.events.images import ImageFailed, ImageRequested
from streams.log.producer import EventLog
from tests.bench import hostile_requests
from tests.support.http_site import Answer, Names, Site, drips, says, serving
from tests.support.images import endless_jpeg, jpeg, png_header

MIB = 1024**2
TIMEOUT = 5.0
SETTLING = 0.3  # seconds in which a killed decoder is gone


@dataclass(frozen=True)
class Attack:
    """A server's answer, and the host by which it is asked (None: its address, which is allowed)."""

    name: str
    answer: Answer
    host: str | None = None


def bomb() -> bytes:
    """9,900 x 9,900 pixels of one colour: within the pixel limit, and 390 MB once decoded."""
    buffer = io.BytesIO()
    Image.new("RGB", (9_900, 9_900)).save(buffer, "PNG")
    return buffer.getvalue()


def attacks() -> list[Attack]:
    photo = jpeg(640, 480)
    head = b"HTTP/1.1 200 OK\r\n"
    chunked, zipped = b"Transfer-Encoding: chunked\r\n\r\n", b"Content-Encoding: gzip\r\n\r\n"
    unfolding = gzip.compress(bytes(300 * MIB))
    return [
        Attack("none: an honest photo", says(200, photo)),
        Attack("pixel bomb, by its header", says(200, png_header(60_000, 60_000))),
        Attack("pixel bomb within the limit", says(200, bomb())),
        Attack("JPEG of 1,500 scans", says(200, endless_jpeg())),
        Attack("truncated JPEG", says(200, photo[: len(photo) // 2])),
        Attack("Content-Length of 10 GB", says(200, photo, {"Content-Length": str(10**10)})),
        Attack("Content-Length beyond the body", says(200, photo, {"Content-Length": str(len(photo) + 100)})),
        Attack("drip of a byte every 20 ms", drips(head + b"Content-Length: 100000\r\n\r\n", b"a")),
        Attack("body without end", drips(head + b"\r\n", bytes(64 * 1024), every=0)),
        Attack(f"gzip bomb, {len(unfolding) // 1024} KB of 300 MB", says(200, unfolding, {"Content-Encoding": "gzip"})),
        Attack("endless interim responses", drips(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, every=0)),
        Attack("chunks of a byte", drips(head + chunked, b"1\r\na\r\n" * 10_000, every=0)),
        Attack("a chunk extension without end", drips(head + chunked + b"1;", bytes(64 * 1024), every=0)),
        Attack("empty gzip members", drips(head + zipped, gzip.compress(b"") * 3000, every=0)),
        Attack("redirect to 169.254.169.254", says(302, b"", {"Location": "http://169.254.169.254/latest/"})),
        Attack("name of a private address", says(200, photo), host="inside.test"),
        Attack("rebinding after the first look-up", says(200, photo), host="rebind.test"),
    ]


@asynccontextmanager
async def worker(attack: Attack, site: Site, folder: Path) -> AsyncIterator[tuple[Compressor, DecoderPool]]:
    settings = Settings(
        data_dir=folder, fetch_timeout=TIMEOUT, codec_timeout=TIMEOUT, codec_processes=2, reuse_seconds=0
    )
    names = Names(inside_test=[["10.0.0.7"]], rebind_test=[["1.1.1.1"], ["127.0.0.1"]])
    names("rebind.test")  # what a check at the upload would have seen
    # Names may use the server's port, and lead to its address at last, but not be connected to it.
    allow = AllowList.parse(f"{'127.0.0.1' if attack.host is None else '192.0.2.1'}:{site.port}")
    async with (
        OutboundClient(allow, look_up=names, dns_cache_seconds=0) as client,
        DecoderPool(settings.codec_processes, settings.codec_timeout, settings.codec_memory) as pool,
    ):
        yield (
            Compressor(
                settings,
                EventLog(settings),
                client,
                pool,
                Storage.of(settings),
                CancelledRequests(),
                RecentResults(settings),
            ),
            pool,
        )


def resident(pool: DecoderPool) -> tuple[int, int]:
    """Bytes of this process, and of the decoders."""
    decoders = sum(psutil.Process(pid).memory_info().rss for pid in pool.process_ids)
    return psutil.Process().memory_info().rss // MIB, decoders // MIB


async def run(attack: Attack, folder: Path) -> str:
    async with serving(attack.answer) as site, worker(attack, site, folder) as (compressor, pool):
        url = site.url(host=attack.host or "127.0.0.1")
        request = ImageRequested(
            request_id="hostile", index=0, row=0, position=0, serial="1", product_name="x", input_url=url
        )
        before = resident(pool)
        started = time.perf_counter()
        result = await compressor.result_of(request)
        seconds = time.perf_counter() - started
        await asyncio.sleep(SETTLING)
        async with asyncio.timeout(30):
            while len(pool.process_ids) < 2:  # noqa: ASYNC110 - no event tells of a process that is gone
                await asyncio.sleep(0.05)
        after = resident(pool)
    reason = result.reason if isinstance(result, ImageFailed) else "processed"
    megabytes = f"{before[0]}+{before[1]} → {after[0]}+{after[1]}"
    return f"{attack.name:38}{reason:26}{seconds:6.2f}   {megabytes}"


def main() -> None:
    print(f"limits: {TIMEOUT:g} s to fetch, {TIMEOUT:g} s to decode; resident MB of worker + decoders, before → after")
    print(f"{'attack':38}{'reason':26}{'s':>6}   MB")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with tempfile.TemporaryDirectory() as folder:
        for attack in attacks():
            print(asyncio.run(run(attack, Path(folder))), flush=True)
    print()
    hostile_requests.main()


if __name__ == "__main__":
    main()
