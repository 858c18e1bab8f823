"""Two real progress workers: one is stopped for longer than its session while it folds."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from infra.settings import Settings
from streams.events.base import Event, utc_now
from streams.log.producer import EventLog
from streams.log.report import Report
from streams.progress.maintenance import verify_progress
from streams.progress.view import ProgressView
from tests.support.examples import created, processed, requested
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
REQUESTS = 3
IMAGES = 2000


@asynccontextmanager
async def worker(settings: Settings, log: Path) -> AsyncIterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "infra.cli", "worker", "progress"],
            cwd=log.parent,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "SHRINKSTREAM_KAFKA_BROKERS": str(settings.kafka_brokers),
                "SHRINKSTREAM_TOPIC_PREFIX": settings.topic_prefix,
                "SHRINKSTREAM_PARTITIONS": str(settings.partitions),
                "SHRINKSTREAM_DATA_DIR": str(log.parent / log.stem),
            },
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)


@asynccontextmanager
async def started(settings: Settings) -> AsyncIterator[tuple[EventLog, ProgressView]]:
    log, view = EventLog(settings, linger_ms=20), ProgressView(settings)
    await log.start()
    await view.start(timeout=120)
    try:
        yield log, view
    finally:
        await view.stop()
        await log.stop()


async def append(log: EventLog, *events: Event) -> None:
    await asyncio.gather(*[await log.enqueue(event) for event in events])


async def test_stopped_worker_leaves_statuses_of_successor(kafka_settings: Settings, tmp_path: Path) -> None:
    now = utc_now()
    ids = [str(uuid4()) for _ in range(REQUESTS)]
    async with started(kafka_settings) as (log, view):
        await append(log, *(created(request_id, total=IMAGES, rows=IMAGES, time=now) for request_id in ids))
        for index in range(IMAGES):
            await append(log, *(processed(requested(request_id, index, time=now)) for request_id in ids))

        def succeeded() -> list[int]:
            return [status.succeeded if (status := view.get(request_id)) else 0 for request_id in ids]

        async def is_counted() -> bool:
            return succeeded() == [IMAGES] * REQUESTS

        async def is_folding() -> bool:
            return 100 < sum(succeeded()) < REQUESTS * IMAGES

        async with worker(kafka_settings, tmp_path / "zombie.log") as zombie:
            await eventually(is_folding)
            zombie.send_signal(signal.SIGSTOP)
            async with worker(kafka_settings, tmp_path / "successor.log") as successor:
                await eventually(is_counted)
                zombie.send_signal(signal.SIGCONT)
                assert await asyncio.to_thread(zombie.wait, 120) == 70, (tmp_path / "zombie.log").read_text()
                await view.catch_up(120)
                assert succeeded() == [IMAGES] * REQUESTS
                assert successor.poll() is None
    report = Report()
    await verify_progress(kafka_settings, None, lambda _, __: None, report)
    assert not report.differences
