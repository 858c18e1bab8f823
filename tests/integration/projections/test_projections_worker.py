"""The agents of a real projections worker beside each other."""

import asyncio
from uuid import uuid4

import pytest

from infra.cassandra.session import Session
from infra.settings import Settings
from streams.log.producer import EventLog
from streams.projections.history import History
from tests.support.examples import output_requested, processed, requested
from tests.support.waiting import eventually
from tests.support.worker_process import ProjectionsWorker

pytestmark = pytest.mark.slow

OUTPUTS = 3000  # more than Faust puts into an agent's queue by default


async def test_results_get_through_to_the_history_however_many_output_csvs_wait_for_theirs(
    cassandra_settings: Settings, kafka_settings: Settings
) -> None:
    system = kafka_settings.model_copy(
        update=cassandra_settings.model_dump(include={"cassandra_hosts", "cassandra_keyspace"})
    )

    session = await Session.connect(system)
    log = EventLog(system)
    await log.start()
    worker = ProjectionsWorker(system)
    try:
        history = History(session)

        async def recorded(request_id: str) -> bool:
            return bool(await history.stored_images(request_id, 0))

        waiting = [output_requested([processed(requested(str(uuid4())))]) for _ in range(OUTPUTS)]
        for written in [await log.enqueue(event) for event in waiting]:
            await written
        first, second = str(uuid4()), str(uuid4())
        await log.append(processed(requested(first)))
        await eventually(lambda: recorded(first))
        await asyncio.sleep(1)  # until all that may wait does
        await log.append(processed(requested(second)))
        await eventually(lambda: recorded(second), 5)
    finally:
        worker.kill()
        await log.stop()
        await session.close()
