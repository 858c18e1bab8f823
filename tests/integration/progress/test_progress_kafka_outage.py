"""Two progress workers while Kafka is away for longer than their sessions and leases."""

import asyncio
from pathlib import Path
from uuid import uuid4

import pytest

from infra.devserver.kafka import EmbeddedKafka
from infra.faust.app import SESSION_TIMEOUT
from infra.kafka.client import KafkaUnavailableError
from infra.settings import Settings
from streams.events.base import Event, utc_now
from streams.log.producer import EventLog
from streams.log.report import Report
from streams.progress.maintenance import verify_progress
from streams.progress.view import ProgressView, StaleViewError
from tests.integration.conftest import system_with_topics
from tests.support.examples import created, processed, requested
from tests.support.outage import paused
from tests.support.waiting import eventually
from tests.support.worker_process import WorkerProcess

pytestmark = [pytest.mark.slow, pytest.mark.time_limit(420)]

REQUESTS = 3
IMAGES = 1000
LONG = 150.0
"""Deadline (s) of a takeover after the outage, on a busy machine."""


class ProgressWorker(WorkerProcess):
    role = "progress"


class Workers:
    """Two workers under a supervisor, which restarts those that end with 70."""

    def __init__(self, settings: Settings) -> None:
        self._workers = [ProgressWorker(settings, f"progress-{number}") for number in range(2)]

    def tend(self) -> None:
        for worker in self._workers:
            if (status := worker.process.poll()) is not None:
                assert status == 70, worker.log[-5000:]
                worker.start_again()

    def kill(self) -> None:
        for worker in self._workers:
            worker.kill()


async def append(log: EventLog, *events: Event) -> None:
    await asyncio.gather(*[await log.enqueue(event) for event in events])


async def counted(settings: Settings, ids: list[str]) -> int:
    """Images that a new reader of the changelog counts; 0 as long as Kafka isn't back."""
    view = ProgressView(settings)
    try:
        await view.start(timeout=30)
        return sum(status.succeeded for request_id in ids if (status := view.get(request_id)) is not None)
    except (KafkaUnavailableError, StaleViewError):
        return 0
    finally:
        await view.stop()


async def test_outage_longer_than_lease_leaves_exact_counts(tmp_path: Path) -> None:
    now, ids = utc_now(), [str(uuid4()) for _ in range(REQUESTS)]
    async with EmbeddedKafka(tmp_path) as kafka:
        settings = await asyncio.to_thread(system_with_topics, kafka.address, tmp_path)
        log = EventLog(settings, linger_ms=20)
        await log.start()
        workers = Workers(settings)
        try:
            await append(log, *(created(request_id, total=IMAGES, rows=IMAGES, time=now) for request_id in ids))

            async def append_results(indexes: range) -> None:
                results = (processed(requested(one, index, time=now)) for index in indexes for one in ids)
                await append(log, *results)

            await append_results(range(IMAGES // 2))

            async def is_folding() -> bool:
                workers.tend()
                return await counted(settings, ids) > 50

            async def is_counted() -> bool:
                workers.tend()
                return await counted(settings, ids) == REQUESTS * IMAGES

            await eventually(is_folding, LONG)
            await append_results(range(IMAGES // 2, IMAGES))
            with paused(kafka):
                await asyncio.sleep(1.5 * SESSION_TIMEOUT)
            await eventually(is_counted, LONG)
            report = Report()
            await verify_progress(settings, None, lambda _, __: None, report)
            assert not report.differences
        finally:
            workers.kill()
            await log.stop()
