"""Slots of due webhooks."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from itertools import pairwise
from uuid import uuid4

import pytest

from infra.cancellation import cancel_and_wait
from infra.cassandra.schema import migrations, statements
from infra.cassandra.session import Session
from infra.outbound.addresses import AllowList
from infra.outbound.client import OutboundClient
from infra.settings import Settings
from streams.events.base import utc_now
from streams.log.producer import EventLog
from streams.webhooks import dispatcher, store, sweep
from streams.webhooks.delivery import Delivery, Origin
from streams.webhooks.dispatcher import Dispatcher
from streams.webhooks.schedule import Schedule
from streams.webhooks.sender import Sender
from streams.webhooks.store import Deliveries, Hint
from tests.support.receiver import Receiver
from tests.support.waiting import eventually


async def test_hint_written_late_is_in_a_listed_slot(
    cassandra_settings: Settings, request_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await Session.connect(cassandra_settings)
    try:
        writer, owner = Deliveries(session, 8), Deliveries(session, 8)
        host = f"{request_id}.example"
        origin = Origin(request_id, "request.completed", 0, f"https://{host}/", "{}", utc_now())
        start = utc_now() - timedelta(minutes=20)
        monkeypatch.setattr(store, "utc_now", lambda: start)
        hint = await writer.schedule(Delivery("msg_1", origin), start)
        await owner.forget_slot(hint.shard, host, hint.slot)  # empty, and over
        # The next write begins within the slot and ends after it, as in an outage of Cassandra.
        times = iter([start])
        monkeypatch.setattr(store, "utc_now", lambda: next(times, utc_now()))
        await writer.schedule(Delivery("msg_2", origin), start)
        assert (host, hint.slot) in await owner.slots(hint.shard)
    finally:
        await session.close()


async def test_sweep_sends_webhook_of_unlisted_slot(
    settings: Settings, request_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "REREAD", 0.1)
    monkeypatch.setattr(sweep, "SLOTS", 3)
    async with AsyncExitStack() as stack:
        session = await Session.connect(settings)
        stack.push_async_callback(session.close)
        deliveries = Deliveries(session, settings.partitions)
        receiver = await stack.enter_async_context(Receiver().listening())
        now = utc_now()
        for number in range(5):  # the sweep needs several passes
            other = Origin(
                f"other-{number}", "request.completed", 0, f"http://{number}.{request_id}.example/", "{}", now
            )
            await deliveries.record_origin(f"{request_id}-{number}", other)
        hint = await unlisted(deliveries, request_id, receiver)
        await stack.enter_async_context(dispatching(settings, deliveries, hint.shard))
        assert [one.webhook_id for one in await receiver.wait_for(1)] == [request_id]


async def unlisted(deliveries: Deliveries, request_id: str, receiver: Receiver, webhook_id: str = "") -> Hint:
    """A hint that is due, in a slot that is not in the list."""
    origin = Origin(request_id, "request.completed", 0, receiver.url, "{}", utc_now())
    hint = await deliveries.record_origin(webhook_id or request_id, origin)
    assert hint is not None
    await deliveries.forget_slot(hint.shard, hint.host, hint.slot)
    return hint


@asynccontextmanager
async def dispatching(settings: Settings, deliveries: Deliveries, shard: int) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        events = EventLog(settings)
        await events.start()
        stack.push_async_callback(events.stop)
        client = await stack.enter_async_context(OutboundClient(AllowList.parse("127.0.0.1")))

        async def catch_up(_: set[int]) -> None:
            """Nothing is on the log."""

        sending = Dispatcher(deliveries, Sender(client, (), Schedule(())), events, catch_up)
        task = asyncio.create_task(sending.run(lambda: {shard}))
        stack.push_async_callback(cancel_and_wait, task)
        yield


@asynccontextmanager
async def without_hints(settings: Settings) -> AsyncIterator[tuple[Session, str]]:
    """A keyspace with the tables of webhooks, but that of the hints, and the statement that creates it."""
    keyspace = f"sweep_{uuid4().hex[:12]}"
    anywhere = await Session.connect(settings, keyspace="")
    try:
        await anywhere.execute_script(
            f"CREATE KEYSPACE {keyspace} WITH replication = {{'class': 'SimpleStrategy', 'replication_factor': 1}}"
        )
        session = await Session.connect(settings, keyspace=keyspace)
        try:
            create = ""
            for statement in (each for _, _, text in migrations() for each in statements(text)):
                if "webhook_due (" in statement:
                    create = statement
                elif "webhook_" in statement:
                    await session.execute_script(statement)
            yield session, create
        finally:
            await session.close()
            await anywhere.execute_script(f"DROP KEYSPACE {keyspace}")
    finally:
        await anywhere.close()


@pytest.mark.slow
async def test_failing_sweep_backs_off_and_recovers(
    settings: Settings, request_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "REREAD", 0.1)
    monkeypatch.setattr(sweep, "LONGEST_BACKOFF", 0.8)
    failures: list[tuple[float, float]] = []

    def note(error: str, *, backoff: float) -> None:
        failures.append((asyncio.get_running_loop().time(), backoff))

    monkeypatch.setattr(sweep.logger, "exception", note)
    async with AsyncExitStack() as stack:
        session, create_hints = await stack.enter_async_context(without_hints(settings))
        deliveries = Deliveries(session, settings.partitions)
        receiver, another = [await stack.enter_async_context(Receiver().listening()) for _ in range(2)]
        await stack.enter_async_context(dispatching(settings, deliveries, deliveries.shard_of(request_id)))

        async def fails(times: int) -> bool:
            return len(failures) >= times

        await eventually(lambda: fails(6))
        assert [backoff for _, backoff in failures[:6]] == [0.1, 0.2, 0.4, 0.8, 0.8, 0.8]
        assert all(later - at >= backoff for (at, backoff), (later, _) in pairwise(failures))
        await session.execute_script(create_hints)
        for webhook_id, host in (("first", receiver), ("second", another)):  # by a sweep that ended, and a later one
            await unlisted(deliveries, request_id, host, webhook_id)
            assert [one.webhook_id for one in await host.wait_for(1)] == [webhook_id]
        known = len(failures)
        await session.execute_script("DROP TABLE webhook_due")
        await eventually(lambda: fails(known + 1))
        assert failures[known][1] == 0.1
