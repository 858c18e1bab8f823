"""The history in Cassandra: requests and images in a row each, an owner's requests and products newest first.

Every write is the same whenever the same event comes again, and carries a write time made from the event: what
came later in the request's life wins, whatever order the events arrive in.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

from cassandra.query import UNSET_VALUE

from infra.cassandra.session import Session
from infra.cassandra.write_batches import WriteBatches
from streams.events.base import Event
from streams.events.images import ImageFailed, ImageProcessed
from streams.events.requests import (
    RequestCancelled,
    RequestCompleted,
    RequestCreated,
    RequestExpired,
    RequestRetried,
    RequestStopped,
)
from streams.events.webhooks import WebhookDelivered, WebhookFailed, WebhookRedeliveryRequested
from streams.request.lifecycle import Completion, Lifecycle, RequestState
from streams.request.status import Status
from streams.request.tally import IMAGES_PER_CHUNK, Tally, chunk_of
from streams.request.webhook import DeliveryStatus, WebhookState, delivery_status

# Seconds for which a write is retried while Cassandra is unavailable; after that its worker ends and is restarted.
PATIENCE = 120.0
BATCHES_IN_FLIGHT = 16
LIST_PAGE_SIZE = 200

# What outlives all that is said later in a life, in write time (microseconds): far more than a life lasts, and
# still within Cassandra's 64 bits for the highest run an event may have.
OUTLIVES = 2 * 365 * 86_400 * 1_000_000

_INSERT_IMAGE = """
    INSERT INTO images_by_request (request_id, bucket, image_index, attempt, row_number, position, serial,
        product_name, input_url, cells, requested_at, settled_at, output_url, output_path, input_bytes,
        output_bytes, format, width, height, sha256, kept_original, milliseconds, reason, detail)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?"""

_INSERT_PRODUCT_IMAGE = """
    INSERT INTO images_by_owner_product (owner, product_name, requested_at, request_id, image_index, input_url,
        output_url, input_bytes, output_bytes, format, reason)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?"""

_INSERT_OWNED = "INSERT INTO requests_by_owner (owner, day, created_at, request_id) VALUES (?, ?, ?, ?)"

_INSERT_DAY = "INSERT INTO days_by_owner (owner, list, day) VALUES (?, 'requests', ?)"

_INSERT_CREATED = """
    INSERT INTO requests (request_id, owner, created_at, updated_at, total, header, webhook_url)
    VALUES (?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?"""

_INSERT_COMPLETED = """
    INSERT INTO requests (request_id, owner, created_at, updated_at, completed_at, total, succeeded, failed,
        input_bytes, output_bytes, run, webhook_url, output_csv_url, output_csv_path)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?"""

_INSERT_STOPPED = """
    INSERT INTO requests (request_id, owner, created_at, total, succeeded, failed, input_bytes, output_bytes,
        webhook_url)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?"""

_INSERT_CANCELLED = """
    INSERT INTO requests (request_id, cancelled_run, cancelled_at) VALUES (?, ?, ?) USING TIMESTAMP ?"""

_INSERT_RETRIED = """
    INSERT INTO requests (request_id, retried_run, retried_at) VALUES (?, ?, ?) USING TIMESTAMP ?"""
_INSERT_EXPIRED = "INSERT INTO requests (request_id, expired_at) VALUES (?, ?) USING TIMESTAMP ?"

_INSERT_WEBHOOK = "INSERT INTO requests (request_id, webhook) VALUES (?, ?) USING TIMESTAMP ?"

IMAGE_COLUMNS = (
    "attempt", "row_number", "position", "serial", "product_name", "input_url", "cells", "requested_at",
    "settled_at", "output_url", "output_path", "input_bytes", "output_bytes", "format", "width", "height", "sha256",
    "kept_original", "milliseconds", "reason", "detail",
)  # fmt: skip

LISTED_COLUMNS = tuple(column for column in IMAGE_COLUMNS if column != "cells")
"""What lists show of an image: without the cells of its CSV row, up to 64 KB."""
CELLS_PAGE_SIZE = 250
"""Rows of a page that holds cells: 16 MB at most."""


def _select_images(columns: tuple[str, ...]) -> str:
    return f"""
    SELECT image_index, {", ".join(columns)}
    FROM images_by_request WHERE request_id = ? AND bucket = ? AND image_index >= ?
    LIMIT ?"""  # noqa: S608 - our own column names


_SELECT_WHOLE_IMAGES = _select_images(IMAGE_COLUMNS)
_SELECT_LISTED_IMAGES = _select_images(LISTED_COLUMNS)

_DELETE_IMAGE = "DELETE FROM images_by_request WHERE request_id = ? AND bucket = ? AND image_index = ?"

_SELECT_REQUEST = "SELECT * FROM requests WHERE request_id = ?"

_SELECT_IMAGES = """
    SELECT image_index, attempt, row_number, position, input_url, cells, output_url, output_path, reason
    FROM images_by_request WHERE request_id = ? AND bucket = ?"""


_SELECT_DAYS = "SELECT day FROM days_by_owner WHERE owner = ? AND list = 'requests' AND day <= ?"

_SELECT_DAY = "SELECT day FROM days_by_owner WHERE owner = ? AND list = 'requests' AND day = ?"

_SELECT_LISTED = """
    SELECT request_id FROM requests_by_owner WHERE owner = ? AND day = ? AND created_at = ? AND request_id = ?"""

_SELECT_OWNED = """
    SELECT created_at, request_id FROM requests_by_owner
    WHERE owner = ? AND day = ? AND (created_at, request_id) < (?, ?)"""

_SELECT_PRODUCT_IMAGES = """
    SELECT requested_at, request_id, image_index, input_url, output_url, input_bytes, output_bytes, format, reason
    FROM images_by_owner_product
    WHERE owner = ? AND product_name = ? AND (requested_at, request_id, image_index) < (?, ?, ?) LIMIT ?"""

# After every time and every id that there may be.
END_OF_TIME = datetime(9999, 1, 1, tzinfo=UTC)
NEWEST_REQUEST = (END_OF_TIME, "")


class ProductPlace(NamedTuple):
    """Where an image stands in the history of its product."""

    requested_at: datetime
    request_id: str
    image_index: int


NEWEST_IMAGE = ProductPlace(END_OF_TIME, "", 0)


class History:
    """Writes events into the history tables and answers from them."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._images = WriteBatches(session, retry_for=PATIENCE, in_flight=BATCHES_IN_FLIGHT)

    @property
    def waiting(self) -> int:
        """How many writes wait for their batch."""
        return len(self._images)

    async def record(self, event: Event, *, rebuilt_at: datetime | None = None) -> None:
        """Apply ``event``; events that the history doesn't keep are ignored.

        ``rebuilt_at``: when the rebuild began. Its writes win over all that were made before it.
        """
        match event:
            case ImageProcessed() | ImageFailed():
                await self._record_image(event, rebuilt_at)
            case RequestCreated():
                await self._record_created(event, rebuilt_at)
            case RequestCompleted():
                await self._record_completed(event, rebuilt_at)
                await self._record_webhook(event, rebuilt_at)
            case RequestCancelled():
                written = write_time(rebuilt_at) + event.run if rebuilt_at else write_time(event.time)
                await self._write(_INSERT_CANCELLED, event.request_id, event.run, event.time, written)
            case RequestRetried():
                written = write_time(rebuilt_at) + event.run if rebuilt_at else write_time(event.time)
                await self._write(_INSERT_RETRIED, event.request_id, event.run, event.time, written)
            case RequestStopped():
                await self._record_stopped(event, rebuilt_at)
            case RequestExpired():
                await self._write(_INSERT_EXPIRED, event.request_id, event.time, write_time(rebuilt_at or event.time))
            case WebhookDelivered() | WebhookFailed() | WebhookRedeliveryRequested():
                await self._record_webhook(event, rebuilt_at)
            case _:
                pass

    async def _record_created(self, event: RequestCreated, rebuilt_at: datetime | None) -> None:
        await self._write(
            _INSERT_CREATED,
            event.request_id,
            event.owner,
            event.time,
            event.time,
            event.total,
            event.header,
            _or_unset(event.webhook_url),
            write_time(rebuilt_at or event.time),
        )
        day = event.time.date()
        await self._write(_INSERT_OWNED, event.owner, day, event.time, event.request_id)
        await self._write(_INSERT_DAY, event.owner, day)

    async def _record_completed(self, event: RequestCompleted, rebuilt_at: datetime | None) -> None:
        await self._write(
            _INSERT_COMPLETED,
            event.request_id,
            event.owner,
            event.created_at,
            event.time,
            event.time,
            event.total,
            event.succeeded,
            event.failed,
            event.input_bytes,
            event.output_bytes,
            event.run,
            _or_unset(event.webhook_url),
            event.output_csv_url,
            event.output_csv_path,
            write_time(rebuilt_at) + 1 + event.run if rebuilt_at else write_time(event.time),
        )

    async def _record_stopped(self, event: RequestStopped, rebuilt_at: datetime | None) -> None:
        await self._write(
            _INSERT_STOPPED,
            event.request_id,
            event.owner,
            event.created_at,
            event.total,
            event.succeeded,
            event.failed,
            event.input_bytes,
            event.output_bytes,
            _or_unset(event.webhook_url),
            write_time(rebuilt_at) + 1 + event.run if rebuilt_at else write_time(event.time),
        )

    async def _record_webhook(self, event: Event, rebuilt_at: datetime | None) -> None:
        said = delivery_status(event)
        if said is None:
            return
        # The greatest standing holds, as in the progress table; within one, times are in the order of events.
        within = 2 * said.after_attempt + said.failed if rebuilt_at else 0
        written = write_time(rebuilt_at or event.time) + OUTLIVES * (2 * said.run + said.delivered) + within
        await self._write(_INSERT_WEBHOOK, event.request_id, said.state, written)

    async def _record_image(self, event: ImageProcessed | ImageFailed, rebuilt_at: datetime | None) -> None:
        done = event if isinstance(event, ImageProcessed) else None
        failed = event if isinstance(event, ImageFailed) else None
        # A success outlives a failure of the same attempt; a later attempt outlives an earlier one.
        success = 1 if done else 0
        written = (
            write_time(rebuilt_at) + 2 * event.run + success if rebuilt_at else write_time(event.requested_at) + success
        )
        output = (
            (done.output_url, done.output_path, done.input_bytes, done.output_bytes, done.format)
            if done
            else (UNSET_VALUE,) * 5
        )
        image = (
            event.request_id,
            chunk_of(event.index)[0],
            event.index,
            event.run,
            event.row,
            event.position,
            event.serial,
            event.product_name,
            event.input_url,
            _or_unset(event.cells),
            event.requested_at,
            event.time,
            *output,
            *(
                (done.width, done.height, done.sha256, done.kept_original, milliseconds_of(done))
                if done
                else (UNSET_VALUE,) * 5
            ),
            *((failed.reason, failed.detail) if failed else (UNSET_VALUE,) * 2),
            written,
        )
        product_image = (
            event.owner,
            event.product_name,
            event.requested_at,
            event.request_id,
            event.index,
            event.input_url,
            output[0],
            *output[2:],
            failed.reason if failed else UNSET_VALUE,
            written,
        )
        await asyncio.gather(
            self._images.write(_INSERT_IMAGE, image), self._images.write(_INSERT_PRODUCT_IMAGE, product_image)
        )

    async def _write(self, cql: str, *parameters: Any) -> None:
        await self._session.execute(cql, parameters, retry_for=PATIENCE)

    async def request(self, request_id: str) -> tuple[RequestState, Tally] | None:
        """A request as the history has it, with one tally of all its images; None before its RequestCreated is here."""
        rows = await self._session.execute(_SELECT_REQUEST, (request_id,))
        if not rows or rows[0].total is None:
            return None
        return _state_of(rows[0]), _tally_of(rows[0])

    async def status(self, request_id: str) -> Status | None:
        """The status of a request as the history has it: completed once that is in Cassandra."""
        found = await self.request(request_id)
        return None if found is None else Status.of(found[0], (found[1],))

    async def lifecycle(self, request_id: str, *, patience: float = PATIENCE) -> Lifecycle:
        """The runs of a request; with none while the history has nothing about it."""
        rows = await self._session.execute(_SELECT_REQUEST, (request_id,), retry_for=patience)
        return Lifecycle(**_runs_of(rows[0])) if rows else Lifecycle()

    async def is_listed(self, owner: str, created_at: datetime, request_id: str) -> bool:
        """Whether a request is among those of its owner."""
        place = (owner, created_at.date(), created_at, request_id)
        return bool(await self._session.execute(_SELECT_LISTED, place)) and bool(
            await self._session.execute(_SELECT_DAY, place[:2])
        )

    async def listed_images(
        self,
        request_id: str,
        bucket: int,
        *,
        start: int = 0,
        limit: int = IMAGES_PER_CHUNK,
        patience: float = PATIENCE,
    ) -> dict[int, tuple[Any, ...]]:
        """The ``LISTED_COLUMNS`` of up to 1,000 consecutive images by index: the first ``limit`` from ``start`` on."""
        place = (request_id, bucket, start, limit)
        rows = await self._session.execute(_SELECT_LISTED_IMAGES, place, retry_for=patience)
        return {row[0]: tuple(row[1:]) for row in rows}

    async def whole_images(self, request_id: str, bucket: int) -> dict[int, tuple[Any, ...]]:
        """The ``IMAGE_COLUMNS`` of up to 1,000 consecutive images by index."""
        place = (request_id, bucket, 0, IMAGES_PER_CHUNK)
        return {row[0]: tuple(row[1:]) for row in await self._with_cells(_SELECT_WHOLE_IMAGES, place)}

    async def forget_image(self, request_id: str, index: int) -> None:
        await self._write(_DELETE_IMAGE, request_id, chunk_of(index)[0], index)

    async def requests_of(self, owner: str, before: tuple[datetime, str]) -> AsyncIterator[tuple[datetime, str]]:
        """When each request of an owner was created, and its id, newest first, from ``before`` (not included) on."""
        async for days in self._session.pages(_SELECT_DAYS, (owner, before[0].date()), page_size=LIST_PAGE_SIZE):
            for (day,) in days:
                owned = self._session.pages(_SELECT_OWNED, (owner, day, *before), page_size=LIST_PAGE_SIZE)
                async for rows in owned:
                    for row in rows:
                        yield utc(row.created_at), row.request_id

    async def product_images(self, owner: str, product: str, before: ProductPlace, limit: int) -> list[Any]:
        """Up to ``limit`` rows of the images that an owner's product had processed, newest first."""
        return await self._session.execute(_SELECT_PRODUCT_IMAGES, (owner, product, *before, limit))

    async def images(self, request_id: str, bucket: int) -> list[Any]:
        """The rows of up to 1,000 consecutive images, in order."""
        return await self._with_cells(_SELECT_IMAGES, (request_id, bucket))

    async def _with_cells(self, cql: str, parameters: tuple[Any, ...]) -> list[Any]:
        rows: list[Any] = []
        async for page in self._session.pages(cql, parameters, page_size=CELLS_PAGE_SIZE, retry_for=PATIENCE):
            rows += page
        return rows


def _state_of(row: Any) -> RequestState:
    changes = (row.updated_at, row.cancelled_at, row.retried_at, row.expired_at)
    # A completion without a delivery status is about to get one.
    webhook: WebhookState | None = row.webhook or ("pending" if row.webhook_url and row.completed_at else None)
    return RequestState(
        request_id=row.request_id,
        total=row.total,
        header=tuple(row.header or ()),
        owner=row.owner or "",
        created_at=utc(row.created_at),
        updated_at=max(utc(change) for change in changes if change),
        webhook_url=row.webhook_url,
        delivery=DeliveryStatus.of(webhook, row.run or 0) if webhook else None,
        **_runs_of(row),
    )


def _runs_of(row: Any) -> dict[str, Any]:
    """The fields of a Lifecycle; what a request was stopped with has no run in the history."""
    completion = None
    if row.completed_at is not None:
        completion = Completion(
            row.run or 0, utc(row.completed_at), row.failed or 0, row.output_csv_url, row.output_csv_path
        )
    return {
        "retried_run": row.retried_run or 0,
        "retried_at": utc(row.retried_at) if row.retried_at else None,
        "cancelled_run": row.cancelled_run,
        "completion": completion,
        "is_expired": row.expired_at is not None,
    }


def _tally_of(row: Any) -> Tally:
    """The sums of the last run that ended."""
    run = max(row.run or 0, row.cancelled_run or 0)
    return Tally(
        run, row.succeeded or 0, row.failed or 0, row.input_bytes or 0, row.output_bytes or 0, updated_ms=0, states=b""
    )


def milliseconds_of(event: ImageProcessed) -> int:
    """How long fetching, shrinking and storing an image took."""
    return event.fetch_ms + event.shrink_ms + event.store_ms


def write_time(time: datetime) -> int:
    """A Cassandra write time: microseconds since 1970."""
    return int(time.timestamp() * 1_000_000)


def utc(time: datetime) -> datetime:
    """A time as the driver returns it (in UTC, but without saying so)."""
    return time.replace(tzinfo=UTC)


def _or_unset(value: Any) -> Any:
    # A null would be written as a tombstone.
    return UNSET_VALUE if value is None else value
