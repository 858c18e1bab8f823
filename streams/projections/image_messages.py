"""Messages about images: up to 100 of a request at a time, made from the history once all have their result."""

import asyncio

import structlog

from streams.events.progress import ImagesSettled
from streams.projections import lag
from streams.projections.history import History
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
        """Record the messages once the history has the images; none if they are not on the log, or are forgotten."""
        if (await self._history.lifecycle(event.request_id)).is_forgotten:
            return []

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
        """Record the messages and return the hints of those that are to be sent; None: the history lags.

        A rebuild, too, finds only messages that were due, by the runs of the rows: one of an image that was retried
        since is left to the message of the later run.
        """
        images = await self._history.listed_images(
            event.request_id, chunk_of(event.first)[0], start=event.first, limit=event.count
        )
        for index in range(event.first, event.first + event.count):
            image = images.get(index)
            if image is None or (image["output_path"] is None and image["run"] < event.run):
                return None  # its result, or that of this run, is not here yet
        hints = []
        for kind in event.webhook_events:
            body = images_message(event, kind, images)
            webhook_id = images_id(event, kind)
            # A message that was recorded once stays as it is, however late a success came since.
            known = await self._deliveries.load(webhook_id)
            if body is None and known.origin is None:
                continue
            origin = known.origin or Origin(
                event.request_id,
                kind,
                event.run,
                event.webhook_url,
                (body or b"").decode(),
                event.time,
                event.traceparent,
                event.owner,
            )
            hint = await self._deliveries.record_origin(webhook_id, origin)
            if hint is not None:
                hints.append(hint)
        return hints
