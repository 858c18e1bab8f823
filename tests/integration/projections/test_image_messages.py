"""Webhooks about images: made once from the history, and never from the results of a later run."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from infra.cassandra.session import Session
from infra.settings import Settings
from streams.events.progress import ImagesSettled
from streams.events.webhooks import WebhookAttempted
from streams.projections.history import History
from streams.projections.image_messages import ImageMessages
from streams.webhooks.message import images_id
from streams.webhooks.store import Deliveries
from tests.support.examples import NOON, failed, processed, requested


def settled(request_id: str, run: int) -> ImagesSettled:
    return ImagesSettled(
        request_id=request_id,
        run=run,
        first=0,
        count=3,
        created_at=NOON,
        time=NOON + timedelta(hours=run),
        webhook_url="https://receiver.example/hook",
        webhook_events=("image.processed", "image.failed"),
    )


@asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[tuple[History, Deliveries, ImageMessages]]:
    session = await Session.connect(settings)
    try:
        history, deliveries = History(session), Deliveries(session, 2)
        yield history, deliveries, ImageMessages(history, deliveries)
    finally:
        await session.close()


async def test_rereading_creates_no_message_that_was_never_due(cassandra_settings: Settings, request_id: str) -> None:
    first, second = settled(request_id, 0), settled(request_id, 1)

    async with connected(cassandra_settings) as (history, deliveries, messages):
        for index in range(3):
            await history.record(failed(requested(request_id, index)))
        (failures,) = await messages.record(first) or []
        assert failures.webhook_id == images_id(first, "image.failed")
        for index in range(3):
            await history.record(processed(requested(request_id, index, run=1)))
        (successes,) = await messages.record(second) or []
        assert successes.webhook_id == images_id(second, "image.processed")

        again = await messages.record(first) or []
        assert [hint.webhook_id for hint in again] == [failures.webhook_id], "the message of before is still due"
        assert (await deliveries.load(images_id(first, "image.processed"))).origin is None


async def test_rebuild_records_messages_due_without_attempts(cassandra_settings: Settings, request_id: str) -> None:
    """Cassandra was lost after the images were settled and before their second message was sent."""
    event = settled(request_id, 0)
    attempted = WebhookAttempted(
        request_id=request_id, webhook_id=images_id(event, "image.failed"), kind="image.failed", attempt=1,
        milliseconds=1, status=200,
    )  # fmt: skip

    async with connected(cassandra_settings) as (history, deliveries, messages):
        for index in range(3):
            await history.record((failed if index else processed)(requested(request_id, index)))
        await deliveries.record(attempted)
        hints = await messages.record(event) or []
        assert [hint.webhook_id for hint in hints] == [images_id(event, "image.processed")]
        assert (await deliveries.load(images_id(event, "image.failed"))).state == "delivered"


async def test_confirmed_attempt_stays_confirmed(cassandra_settings: Settings, request_id: str) -> None:
    """Also when a worker that was paused meanwhile records a failure of the same attempt an hour later."""
    told: dict[str, Any] = {
        "request_id": request_id,
        "webhook_id": f"msg_{request_id}",
        "attempt": 1,
        "milliseconds": 1,
    }
    events = [
        WebhookAttempted(**told, status=200, time=NOON),
        WebhookAttempted(
            **told, reason="timeout", next_attempt_at=NOON + timedelta(hours=2), time=NOON + timedelta(hours=1)
        ),
    ]

    async with connected(cassandra_settings) as (_, deliveries, _messages):
        for event in (*events, *reversed(events)):
            await deliveries.record(event)
            delivery = await deliveries.load(told["webhook_id"])
            assert (delivery.state, delivery.attempts[0].reason) == ("delivered", None)
