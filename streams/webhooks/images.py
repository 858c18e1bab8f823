"""Messages about images: up to 100 of a request at a time, made from the history once all have their result."""

import asyncio
from typing import Any

import structlog

from streams.events.progress import ImagesSettled
from streams.projections import lag
from streams.projections.history import LISTED_COLUMNS, History
from streams.projections.lag import HistoryLagsError, Recall, with_history
from streams.request.tally import chunk_of
from streams.webhooks.delivery import Origin
from streams.webhooks.message import images_id, images_message
from streams.webhooks.store import Deliveries, Hint

logger = structlog.get_logger(__name__)


class ImageMessages:
    """Makes the messages about settled images; ``recall`` is for `take` alone."""

    def __init__(
        self,
        history: History,
        deliveries: Deliveries,
        recall: Recall | None = None,
    ) -> None:
        self._history = history
        self._deliveries = deliveries
        self._recall = recall

    async def take(self, event: ImagesSettled) -> list[Hint]:
        """Record the messages once the history has the images; none if they are not on the log either."""

        async def recall() -> None:
            if self._recall is not None:
                await self._recall(event.request_id, event.created_at)

        try:
            return await with_history(lambda: self._await_images(event), recall)
        except HistoryLagsError as gap:
            logger.error("webhooks about images given up", **event.log_fields(), reason=str(gap))
            return []

    async def _await_images(self, event: ImagesSettled) -> list[Hint]:
        deadline = asyncio.get_running_loop().time() + lag.HISTORY_TIMEOUT
        while (hints := await self.record(event)) is None:
            if asyncio.get_running_loop().time() > deadline:
                raise HistoryLagsError(f"some results of {event.count} images from {event.first} on are missing")
            await asyncio.sleep(lag.HISTORY_POLL)
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
