"""Commands of operators to the owner of a partition of the progress table."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from infra.cancellation import cancel_and_wait
from infra.errors import ExplainedError
from infra.settings import Settings
from streams.events.base import Event, utc_now
from streams.events.maintenance import (
    ProgressRebuildFailed,
    ProgressRebuildRequested,
    ProgressRebuildStarted,
    ProgressRebuilt,
)
from streams.events.registry import decode
from streams.log.producer import EventLog
from streams.log.reader import LogReader, partition_of
from streams.progress import rebuild
from streams.progress.maintenance import ATTEMPTS, COMMAND_EXPIRES, Commands, request_rebuild
from streams.progress.store import fold, row_key
from tests.support.examples import created, processed, requested
from tests.support.topic_reader import events_in, records_in

pytestmark = pytest.mark.slow


def command(partition: int, **fields: object) -> ProgressRebuildRequested:
    rebuild_id = str(uuid4())
    return ProgressRebuildRequested.model_validate(
        {"request_id": rebuild_id, "rebuild_id": rebuild_id, "partition": partition, "time": utc_now(), **fields}
    )


async def owned() -> None:
    pass


@asynccontextmanager
async def commands(settings: Settings, table: dict[bytes, bytes]) -> AsyncIterator[tuple[Commands, EventLog]]:
    log = EventLog(settings)
    await log.start()
    try:
        yield Commands(settings, log, table, lambda _: 0, lambda: False), log
    finally:
        await log.stop()


async def results(settings: Settings, log: EventLog) -> list[Event]:
    found = await events_in(settings, log.topics.maintenance)
    return [event for event in found if not isinstance(event, ProgressRebuildRequested)]


async def test_rebuild_makes_the_table_equal_the_log(kafka_settings: Settings, request_id: str) -> None:
    table = {b"stray": b"evicted 1 0"}
    async with commands(kafka_settings, table) as (owner, log):
        events: list[Event] = [created(request_id, total=2), processed(requested(request_id))]
        expected: dict[bytes, bytes | None] = {}
        for event in events:
            await log.append(event)
            expected |= fold(event, expected.get).changes
        async with LogReader.open(kafka_settings) as reader:
            partition = partition_of(row_key(request_id), await reader.partitions(log.topics.requests)).partition
        owner = Commands(kafka_settings, log, table, lambda _: partition, lambda: False)
        order = command(partition)
        written = await log.append(order, partition=partition)
        await owner.execute(order, written.offset, owned)
        assert table == expected
        started, done = await results(kafka_settings, log)
        assert isinstance(started, ProgressRebuildStarted)
        assert isinstance(done, ProgressRebuilt)
        assert done.changed == 3
        await owner.execute(order, written.offset, owned)  # a redelivery after it was done
        assert len(await results(kafka_settings, log)) == 2


async def test_redelivered_command_fails_without_execution(kafka_settings: Settings) -> None:
    table = {b"stray": b"evicted 1 0"}
    async with commands(kafka_settings, table) as (owner, log):
        order = command(0)
        written = await log.append(order, partition=0)
        begun = ProgressRebuildStarted(request_id=order.request_id, rebuild_id=order.rebuild_id, partition=0)
        await log.append(begun, partition=0)
        await owner.execute(order, written.offset, owned)
        _, failed = await results(kafka_settings, log)
        assert isinstance(failed, ProgressRebuildFailed)
        assert "died" in failed.reason
        assert table, "nothing was rebuilt"


async def test_old_command_is_skipped(kafka_settings: Settings) -> None:
    table = {b"stray": b"evicted 1 0"}
    async with commands(kafka_settings, table) as (owner, log):
        order = command(0, time=utc_now() - COMMAND_EXPIRES - timedelta(seconds=1))
        written = await log.append(order, partition=0)
        with capture_logs() as logs:
            await owner.execute(order, written.offset, owned)
        assert [line["event"] for line in logs] == ["expired command skipped"]
        assert (await results(kafka_settings, log), len(table)) == ([], 1)


async def test_interrupted_rebuild_fails_the_command(kafka_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuild, "INTERRUPTION_CHECK", 0.0)
    async with commands(kafka_settings, {}) as (_, log):
        order = command(0)
        written = await log.append(order, partition=0)
        await Commands(kafka_settings, log, {}, lambda _: 0, lambda: True).execute(order, written.offset, owned)
        _, failed = await results(kafka_settings, log)
        assert isinstance(failed, ProgressRebuildFailed)
        assert failed.reason == "interrupted by a rebalance"


@pytest.mark.parametrize(("failures", "commands_sent"), [(1, 2), (2, 2)])
async def test_rebuild_is_given_up_after_second_failure(
    kafka_settings: Settings, request_id: str, monkeypatch: pytest.MonkeyPatch, failures: int, commands_sent: int
) -> None:
    monkeypatch.setattr(rebuild, "INTERRUPTION_CHECK", 0.0)
    executed: list[str] = []

    async with commands(kafka_settings, {}) as (_, log):

        async def own_all_partitions() -> None:
            while True:
                for record in await records_in(kafka_settings, log.topics.maintenance):
                    event = decode(record.value)
                    if isinstance(event, ProgressRebuildRequested) and event.rebuild_id not in executed:
                        executed.append(event.rebuild_id)
                        is_interrupted = len(executed) <= failures
                        owner = Commands(kafka_settings, log, {}, lambda _: -1, partial(bool, is_interrupted))
                        await owner.execute(event, record.offset, owned)
                await asyncio.sleep(0.1)

        owning = asyncio.create_task(own_all_partitions())
        try:
            reported = request_rebuild(kafka_settings, request_id, lambda _, __: None)
            if failures < ATTEMPTS:
                await reported
            else:
                with pytest.raises(ExplainedError, match="failed 2 times: interrupted by a rebalance; see the log"):
                    await reported
        finally:
            await cancel_and_wait(owning)
    assert len(executed) == commands_sent
