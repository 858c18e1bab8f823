"""Writes the rows of events into the history, idempotently and in any order."""

import asyncio
from datetime import datetime

from cassandra.query import UNSET_VALUE

from infra.cassandra.insert import Insert
from infra.cassandra.session import RETRY_FOR, Session
from infra.cassandra.write_batches import WriteBatches
from streams.events.base import Event
from streams.events.images import ImageFailed, ImageProcessed, ImageRequested
from streams.events.requests import (
    RequestCancelled,
    RequestCompleted,
    RequestCreated,
    RequestExpired,
    RequestForgotten,
    RequestRetried,
    RequestStopped,
)
from streams.events.webhooks import WebhookDelivered, WebhookFailed, WebhookRedeliveryRequested
from streams.projections.history import tables
from streams.projections.history.write_clock import WriteClock
from streams.request.tally import chunk_of
from streams.request.webhook import delivery_status

BATCHES_IN_FLIGHT = 16
PRODUCT_PART = 50_000
"""Consecutive images of a request whose products share partitions: bounds a month's partition of one product."""
KNOWN_MONTHS = 10_000
"""Months of owners that are known to be listed, and not written again."""

_ERASE_REQUEST = "DELETE header, webhook_url FROM requests USING TIMESTAMP ? WHERE request_id = ?"
_ERASE_IMAGE = """
    DELETE FROM images_by_request USING TIMESTAMP ? WHERE request_id = ? AND bucket = ? AND image_index = ?"""
_ERASE_PRODUCT = """
    DELETE FROM images_by_product_month USING TIMESTAMP ?
    WHERE owner = ? AND product_name = ? AND month = ? AND part = ?
    AND requested_at = ? AND request_id = ? AND image_index = ?"""
_DELETE_IMAGE = "DELETE FROM images_by_request WHERE request_id = ? AND bucket = ? AND image_index = ?"


class HistoryWriter:
    """Applies events to the tables."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._images = WriteBatches(session, retry_for=RETRY_FOR, in_flight=BATCHES_IN_FLIGHT)
        self._live = WriteClock()
        self._known_months: set[tuple[str, int, int]] = set()

    @property
    def waiting(self) -> int:
        """Number of writes that wait for a batch."""
        return len(self._images)

    async def record(self, event: Event, *, rebuilt_at: datetime | None = None) -> None:
        """Apply ``event``; events that the history doesn't keep are ignored. ``rebuilt_at``: see WriteClock."""
        clock = self._live if rebuilt_at is None else WriteClock(rebuilt_at)
        match event:
            case ImageProcessed() | ImageFailed():
                await self._record_image(event, clock)
            case RequestCreated():
                await self._insert(tables.INSERT_CREATED, event, clock.at(event.time))
                await self._list_request(event)
            case RequestCompleted():
                await self._insert(tables.INSERT_COMPLETED, event, clock.summary(event))
                await self._add_up(event, clock)
                await self._record_webhook(event, clock)
            case RequestCancelled():
                await self._insert(tables.INSERT_CANCELLED, event, clock.at(event.time, event.run))
            case RequestRetried():
                await self._insert(tables.INSERT_RETRIED, event, clock.at(event.time, event.run))
            case RequestStopped():
                await self._insert(tables.INSERT_STOPPED, event, clock.summary(event))
                await self._add_up(event, clock)
            case RequestForgotten():
                await self._insert(tables.INSERT_FORGOTTEN, event, clock.at(event.time))
                await self._session.execute(
                    _ERASE_REQUEST, (self._live.forgotten(event), event.request_id), retry_for=RETRY_FOR
                )
            case RequestExpired():
                await self._insert(tables.INSERT_EXPIRED, event, clock.at(event.time))
            case WebhookDelivered() | WebhookFailed() | WebhookRedeliveryRequested():
                await self._record_webhook(event, clock)
            case _:
                pass

    async def erase(self, event: Event, forgotten: RequestForgotten) -> None:
        """Remove the rows of an image of a forgotten request, or that it would get; other events are ignored."""
        if not isinstance(event, ImageRequested | ImageProcessed | ImageFailed):
            return
        requested_at = event.time if isinstance(event, ImageRequested) else event.requested_at
        written, request_id, index = self._live.forgotten(forgotten), event.request_id, event.index
        product = (event.owner, event.product_name, tables.month_of(requested_at), index // PRODUCT_PART)
        await asyncio.gather(
            self._images.write(_ERASE_IMAGE, (written, request_id, chunk_of(index)[0], index)),
            self._images.write(_ERASE_PRODUCT, (written, *product, requested_at, request_id, index)),
        )

    async def delete_image(self, request_id: str, index: int) -> None:
        await self._session.execute(_DELETE_IMAGE, (request_id, chunk_of(index)[0], index), retry_for=RETRY_FOR)

    async def _insert(self, insert: Insert, event: Event, written: int) -> None:
        await self._session.execute(insert.cql, (*insert.parameters(event), written), retry_for=RETRY_FOR)

    async def _add_up(self, event: RequestCompleted | RequestStopped, clock: WriteClock) -> None:
        """Write the sums of a request; reasons of an earlier run never stay beside those of a stopped one."""
        failures: object = {}
        if isinstance(event, RequestCompleted):
            # The reconciler's copy of a completion has no reasons: those of the first stay.
            failures = UNSET_VALUE if event.failures is None else event.failures
        parameters = tables.INSERT_SUMS.parameters(event, event.created_at.date(), failures)
        await self._session.execute(tables.INSERT_SUMS.cql, (*parameters, clock.summary(event)), retry_for=RETRY_FOR)

    async def _list_request(self, event: RequestCreated) -> None:
        day = event.time.date()
        owned = tables.INSERT_OWNED
        await self._session.execute(owned.cql, owned.parameters(event, day), retry_for=RETRY_FOR)
        await self._session.execute(tables.INSERT_DAY, (event.owner, day), retry_for=RETRY_FOR)

    async def _record_webhook(self, event: Event, clock: WriteClock) -> None:
        status = delivery_status(event)
        if status is None:
            return
        written = clock.webhook(status, event.time)
        if status.delivered:
            await self._session.execute(
                tables.ADD_DELIVERED, (written, {status.run}, event.request_id), retry_for=RETRY_FOR
            )
        else:
            await self._session.execute(
                tables.SET_WEBHOOK, (written, status.run, status.state, event.request_id), retry_for=RETRY_FOR
            )

    async def _record_image(self, event: ImageProcessed | ImageFailed, clock: WriteClock) -> None:
        if isinstance(event, ImageProcessed):
            image, product = tables.INSERT_SUCCESS, tables.INSERT_PRODUCT_SUCCESS
        else:
            image, product = tables.INSERT_FAILURE, tables.INSERT_PRODUCT_FAILURE
        written = clock.image(event)
        month = (event.owner, tables.month_of(event.requested_at), event.index // PRODUCT_PART)
        if month not in self._known_months:
            await self._list_month(month)
        of_image = image.parameters(event, chunk_of(event.index)[0], _cells_bytes(event))
        await asyncio.gather(
            self._images.write(image.cql, (*of_image, written)),
            self._images.write(product.cql, (*product.parameters(event, *month[1:]), written)),
        )

    async def _list_month(self, month: tuple[str, int, int]) -> None:
        await self._session.execute(tables.INSERT_MONTH, month, retry_for=RETRY_FOR)
        if len(self._known_months) >= KNOWN_MONTHS:
            self._known_months.clear()
        self._known_months.add(month)


def _cells_bytes(event: ImageProcessed | ImageFailed) -> int:
    """Size of the cells in UTF-8, in bytes."""
    return sum(len(cell) if cell.isascii() else len(cell.encode()) for cell in event.cells or ())
