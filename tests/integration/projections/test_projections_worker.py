"""The agents of a real projections worker beside each other."""

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
RESULTS = 20  # one after the other: long after the queues are as full as they may be


async def test_waiting_output_csvs_do_not_delay_results(cassandra_settings: Settings, kafka_settings: Settings) -> None:
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
        for request_id in [str(uuid4()) for _ in range(RESULTS)]:
            await log.append(processed(requested(request_id)))
            await eventually(lambda request_id=request_id: recorded(request_id))  # type: ignore[misc]
    finally:
        worker.kill()
        await log.stop()
        await session.close()
