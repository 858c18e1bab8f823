"""Messages about images: up to 100 of a request at a time, made from the history once all have their result."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import structlog

from streams.events.progress import ImagesSettled
from streams.log.producer import EventLog
from streams.projections.history import LISTED_COLUMNS, History
from streams.request.tally import chunk_of
from streams.webhooks.delivery import Origin
from streams.webhooks.message import images_id, images_message
from streams.webhooks.store import Deliveries, Hint

log = structlog.get_logger(__name__)

PATIENCE = 15.0  # seconds one try waits for the history
POLL = 0.2

# Brings the results of a request that are on the log into the history, from when it was created on.
Recall = Callable[[str, datetime], Awaitable[None]]


class ImageMessages:
    """Makes the messages about settled images; ``event_log`` and ``recall`` are for `take` alone."""

    def __init__(
        self,
        history: History,
        deliveries: Deliveries,
        event_log: EventLog | None = None,
        recall: Recall | None = None,
    ) -> None:
        self._history = history
        self._deliveries = deliveries
        self._log = event_log
        self._recall = recall

    async def take(self, event: ImagesSettled) -> list[Hint]:
        """Record the messages once the history has the images; where it lags for long, put that off.

        To the end of the queue, as an output CSV is: others must not wait behind it, and it must not be lost.
        """
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while (hints := await self.record(event)) is None:
            if asyncio.get_running_loop().time() > deadline:
                assert self._log is not None
                assert self._recall is not None
                log.warning("webhooks about images put off", request_id=event.request_id, first=event.first)
                await self._recall(event.request_id, event.created_at)
                await self._log.append(event)
                return []
            await asyncio.sleep(POLL)
        return hints

    async def record(self, event: ImagesSettled) -> list[Hint] | None:
        """Record the messages and return the hints of those that are to be sent; None: the history lags."""
        rows = await self._history.listed_images(event.request_id, chunk_of(event.first)[0])
        images: dict[int, dict[str, Any]] = {}
        for index in range(event.first, event.first + event.count):
            if index not in rows:
                return None
            image = images[index] = dict(zip(LISTED_COLUMNS, rows[index], strict=True))
            if image["output_path"] is None and (image["attempt"] or 0) < event.run:
                return None  # that of an earlier run
        hints = []
        for kind in event.webhook_events:
            body = images_message(event, kind, images)
            webhook_id = images_id(event, kind)
            # What was told once is told the same way again, however late a success came since.
            known = (await self._deliveries.load(webhook_id)).origin
            if body is None and known is None:
                continue
            origin = known or Origin(
                event.request_id,
                kind,
                event.run,
                event.webhook_url,
                (body or b"").decode(),
                event.time,
                event.traceparent,
            )
            hint = await self._deliveries.record_origin(webhook_id, origin)
            if hint is not None:
                hints.append(hint)
        return hints
