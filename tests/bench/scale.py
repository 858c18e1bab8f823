"""More compress workers, where waiting and not the processor is the limit: a slow image host, few downloads at once."""

import asyncio
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from aiohttp import web

from infra.devserver.cassandra import EmbeddedCassandra
from infra.devserver.kafka import EmbeddedKafka
from infra.devserver.ports import LOOPBACK
from infra.devserver.servers import EmbeddedServers
from tests.bench.images import through_the_system
from tests.bench.report import Row, progress
from tests.e2e.conftest import start_system, stop_system
from tests.support.shop import photo

IMAGES = 320
WORKERS = (1, 2, 4)
LATENCY = 0.4  # seconds until the host answers
DOWNLOADS = 4  # at once in one worker
LIMIT = DOWNLOADS / LATENCY  # images per second of one worker: it can't be faster than that


async def slow_host() -> tuple[web.AppRunner, str]:
    """A web server with one small image, which takes its time."""
    content = photo(160, 120)

    async def answer(_: web.Request) -> web.Response:
        await asyncio.sleep(LATENCY)
        return web.Response(body=content)

    app = web.Application()
    app.router.add_get("/{name}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, LOOPBACK, 0).start()
    host, port = runner.addresses[0][:2]
    return runner, f"{host}:{port}"


def rate(environment: dict[str, str], address: str, workers: int) -> float:
    """Images per second from the first byte of the upload to `completed`."""
    process, url = start_system(environment, "--port", "0", "--workers", str(workers))
    try:
        through_the_system(url, process.pid, [f"http://{address}/warm-up.jpg"] * 4 * workers)
        run = through_the_system(url, process.pid, [f"http://{address}/photo.jpg"] * IMAGES)
        return IMAGES / run.measured.seconds
    finally:
        stop_system(process)


async def run() -> dict[int, float]:
    with tempfile.TemporaryDirectory() as folder:
        kafka, cassandra = EmbeddedKafka(Path(folder)), EmbeddedCassandra(Path(folder))
        runner, address = await slow_host()
        rates: dict[int, float] = {}
        try:
            async with EmbeddedServers(kafka, cassandra):
                environment = {
                    **os.environ,
                    "SHRINKSTREAM_KAFKA_BROKERS": kafka.address,
                    "SHRINKSTREAM_CASSANDRA_HOSTS": cassandra.address,
                    "SHRINKSTREAM_DATA_DIR": f"{folder}/system",
                    "SHRINKSTREAM_FETCH_ALLOW": address,
                    "SHRINKSTREAM_FETCH_CONCURRENCY": str(DOWNLOADS),
                    "SHRINKSTREAM_CODEC_PROCESSES": "1",
                }
                for workers in WORKERS:
                    progress(f"{workers} compress workers")
                    rates[workers] = await asyncio.to_thread(rate, environment, address, workers)
        finally:
            await runner.cleanup()
    return rates


def measure() -> Iterator[Row]:
    for workers, images_per_second in asyncio.run(run()).items():
        yield Row(
            f"{workers} compress workers, a host that answers after {LATENCY:g} s",
            "images/s",
            [images_per_second],
            [workers * LIMIT],
            f"what the host lets them: {DOWNLOADS} downloads at once each",
        )
