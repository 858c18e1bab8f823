"""Slots of due webhooks."""

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest

from infra.cancellation import cancel_and_wait
from infra.cassandra.session import Session
from infra.outbound.addresses import AllowList
from infra.outbound.client import OutboundClient
from infra.settings import Settings
from streams.events.base import utc_now
from streams.log.producer import EventLog
from streams.webhooks import dispatcher, store
from streams.webhooks.delivery import Delivery, Origin
from streams.webhooks.dispatcher import Dispatcher
from streams.webhooks.schedule import Schedule
from streams.webhooks.sender import Sender
from streams.webhooks.store import Deliveries
from tests.support.receiver import Receiver


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
    monkeypatch.setattr(dispatcher, "SLOTS_PER_SWEEP", 3)
    async with AsyncExitStack() as stack:
        receiver = await stack.enter_async_context(Receiver().listening())
        session = await Session.connect(settings)
        stack.push_async_callback(session.close)
        events = EventLog(settings)
        await events.start()
        stack.push_async_callback(events.stop)
        client = await stack.enter_async_context(OutboundClient(AllowList.parse("127.0.0.1")))
        deliveries = Deliveries(session, settings.partitions)
        now = utc_now()
        for number in range(5):  # the sweep needs several passes
            other = Origin(
                f"other-{number}", "request.completed", 0, f"http://{number}.{request_id}.example/", "{}", now
            )
            await deliveries.record_origin(f"{request_id}-{number}", other)
        hint = await deliveries.record_origin(
            request_id, Origin(request_id, "request.completed", 0, receiver.url, "{}", now)
        )
        assert hint is not None
        await deliveries.forget_slot(hint.shard, hint.host, hint.slot)

        async def catch_up(_: set[int]) -> None:
            """Nothing is on the log."""

        sending = Dispatcher(deliveries, Sender(client, (), Schedule(())), events, catch_up)
        task = asyncio.create_task(sending.run(lambda: {hint.shard}))
        stack.push_async_callback(cancel_and_wait, task)
        assert [one.webhook_id for one in await receiver.wait_for(1)] == [request_id]
