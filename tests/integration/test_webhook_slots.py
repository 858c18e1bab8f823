"""Slots of due webhooks."""

from datetime import timedelta

import pytest

from infra.cassandra.session import Session
from infra.settings import Settings
from streams.events.base import utc_now
from streams.webhooks import store
from streams.webhooks.delivery import Delivery, Origin
from streams.webhooks.store import Deliveries


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
