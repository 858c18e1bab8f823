"""The history in Cassandra: each request in a row, each image in a row, each product's images newest first.

Every write is the same whenever the same event comes again, and carries a write time made from the event: what
came later in the request's life wins, whatever order the events arrive in.
"""

from datetime import UTC, datetime
from typing import Any, Literal

from cassandra.query import UNSET_VALUE

from infra.cassandra.session import Session
from streams.events import (
    Event,
    ImageFailed,
    ImageProcessed,
    RequestCompleted,
    RequestCreated,
    RequestFilesRemoved,
    WebhookDelivered,
    WebhookFailed,
)
from streams.status import Status

IMAGES_PER_BUCKET = 1000

# How long a write waits for a Cassandra that is away before its worker gives up and is started anew, in seconds.
PATIENCE = 120.0

_INSERT_IMAGE = """
    INSERT INTO images_by_request (request_id, bucket, image_index, attempt, row_number, position, serial,
        product_name, input_url, cells, requested_at, settled_at, output_url, output_path, input_bytes,
        output_bytes, format, width, height, sha256, kept_original, reason, detail)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?"""

_INSERT_PRODUCT_IMAGE = """
    INSERT INTO images_by_product (product_name, requested_at, request_id, image_index, input_url, output_url,
        input_bytes, output_bytes, format, reason)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?"""

_INSERT_CREATED = """
    INSERT INTO requests (request_id, owner, created_at, updated_at, total, header, webhook_url)
    VALUES (?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?"""

_INSERT_COMPLETED = """
    INSERT INTO requests (request_id, owner, created_at, updated_at, completed_at, total, succeeded, failed,
        input_bytes, output_bytes, run, webhook_url, output_csv_url, output_csv_path)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?"""

_INSERT_EXPIRED = "INSERT INTO requests (request_id, expired_at) VALUES (?, ?) USING TIMESTAMP ?"

_INSERT_WEBHOOK = "INSERT INTO requests (request_id, webhook) VALUES (?, ?) USING TIMESTAMP ?"

IMAGE_COLUMNS = (
    "attempt", "row_number", "position", "serial", "product_name", "input_url", "cells", "requested_at",
    "settled_at", "output_url", "output_path", "input_bytes", "output_bytes", "format", "width", "height", "sha256",
    "kept_original", "reason", "detail",
)  # fmt: skip

_SELECT_WHOLE_IMAGES = f"""
    SELECT image_index, {", ".join(IMAGE_COLUMNS)}
    FROM images_by_request WHERE request_id = ? AND bucket = ?"""  # noqa: S608 - our own column names

_DELETE_IMAGE = "DELETE FROM images_by_request WHERE request_id = ? AND bucket = ? AND image_index = ?"

_SELECT_REQUEST = "SELECT * FROM requests WHERE request_id = ?"

_SELECT_IMAGES = """
    SELECT image_index, attempt, row_number, position, input_url, cells, output_url, output_path, reason
    FROM images_by_request WHERE request_id = ? AND bucket = ?"""


class History:
    """Writes events into the history tables and answers from them."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def record(self, event: Event, *, anew: datetime | None = None) -> None:
        """Write what ``event`` says; events that the history doesn't keep are passed over.

        ``anew``: when a rebuild began. It writes over whatever is there from before, whoever wrote that.
        """
        match event:
            case ImageProcessed() | ImageFailed():
                await self._record_image(event, anew)
            case RequestCreated():
                await self._write(
                    _INSERT_CREATED,
                    event.request_id,
                    event.owner,
                    event.time,
                    event.time,
                    event.total,
                    event.header,
                    _or_unset(event.webhook_url),
                    write_time(anew or event.time),
                )
            case RequestCompleted():
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
                    write_time(anew) + 1 + event.run if anew else write_time(event.time),
                )
            case RequestFilesRemoved():
                await self._write(_INSERT_EXPIRED, event.request_id, event.time, write_time(anew or event.time))
            case WebhookDelivered() | WebhookFailed():
                outcome = "delivered" if isinstance(event, WebhookDelivered) else "failed"
                await self._write(_INSERT_WEBHOOK, event.request_id, outcome, write_time(anew or event.time))
            case _:
                pass

    async def _record_image(self, event: ImageProcessed | ImageFailed, anew: datetime | None) -> None:
        done = event if isinstance(event, ImageProcessed) else None
        failed = event if isinstance(event, ImageFailed) else None
        # A success outlives a failure of the same attempt; a later attempt outlives an earlier one.
        success = 1 if done else 0
        written = write_time(anew) + 2 * event.attempt + success if anew else write_time(event.requested_at) + success
        output = (
            (done.output_url, done.output_path, done.input_bytes, done.output_bytes, done.format)
            if done
            else (UNSET_VALUE,) * 5
        )
        await self._write(
            _INSERT_IMAGE,
            event.request_id,
            event.index // IMAGES_PER_BUCKET,
            event.index,
            event.attempt,
            event.row,
            event.position,
            event.serial,
            event.product_name,
            event.input_url,
            _or_unset(event.cells),
            event.requested_at,
            event.time,
            *output,
            *((done.width, done.height, done.sha256, done.kept_original) if done else (UNSET_VALUE,) * 4),
            *((failed.reason, failed.detail) if failed else (UNSET_VALUE,) * 2),
            written,
        )
        await self._write(
            _INSERT_PRODUCT_IMAGE,
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

    async def _write(self, cql: str, *parameters: Any) -> None:
        await self._session.execute(cql, parameters, patience=PATIENCE)

    async def status(self, request_id: str) -> Status | None:
        """The status of a request as the history knows it: complete once it is completed."""
        rows = await self._session.execute(_SELECT_REQUEST, (request_id,))
        if not rows or rows[0].total is None:
            return None
        row = rows[0]
        return Status(
            request_id=request_id,
            status="expired" if row.expired_at else "completed" if row.completed_at else "processing",
            total=row.total,
            succeeded=row.succeeded or 0,
            failed=row.failed or 0,
            input_bytes=row.input_bytes or 0,
            output_bytes=row.output_bytes or 0,
            created_at=utc(row.created_at),
            updated_at=utc(row.updated_at),
            completed_at=utc(row.completed_at) if row.completed_at else None,
            output_csv_url=None if row.expired_at else row.output_csv_url,
            output_csv_path=None if row.expired_at else row.output_csv_path,
            owner=row.owner or "",
            webhook=webhook_state(row),
        )

    async def is_completed(self, request_id: str, run: int) -> bool:
        """Whether the completion of this run of a request, or of a later one, is in the history."""
        rows = await self._session.execute(_SELECT_REQUEST, (request_id,), patience=PATIENCE)
        return bool(rows) and rows[0].run is not None and rows[0].run >= run

    async def is_expired(self, request_id: str) -> bool:
        """Whether the request's files have been removed because their time was over."""
        rows = await self._session.execute(_SELECT_REQUEST, (request_id,), patience=PATIENCE)
        return bool(rows) and rows[0].expired_at is not None

    async def webhook_is_settled(self, request_id: str) -> bool:
        """Whether the receiver confirmed, or will not be asked again."""
        rows = await self._session.execute(_SELECT_REQUEST, (request_id,), patience=PATIENCE)
        return bool(rows) and rows[0].webhook is not None

    async def whole_images(self, request_id: str, bucket: int) -> dict[int, tuple[Any, ...]]:
        """Every column of up to 1,000 consecutive images, by index."""
        rows = await self._session.execute(_SELECT_WHOLE_IMAGES, (request_id, bucket), patience=PATIENCE)
        return {row[0]: tuple(row[1:]) for row in rows}

    async def forget_image(self, request_id: str, index: int) -> None:
        await self._write(_DELETE_IMAGE, request_id, index // IMAGES_PER_BUCKET, index)

    async def images(self, request_id: str, bucket: int) -> list[Any]:
        """The rows of up to 1,000 consecutive images, in order."""
        return await self._session.execute(_SELECT_IMAGES, (request_id, bucket), patience=PATIENCE)


def webhook_state(row: Any) -> Literal["pending", "delivered", "failed"] | None:
    if row.webhook:
        return row.webhook  # type: ignore[no-any-return]
    return "pending" if row.webhook_url and row.completed_at else None


def write_time(time: datetime) -> int:
    """A Cassandra write time: microseconds since 1970."""
    return int(time.timestamp() * 1_000_000)


def utc(time: datetime) -> datetime:
    """A time as the driver returns it (in UTC, but without saying so)."""
    return time.replace(tzinfo=UTC)


def _or_unset(value: Any) -> Any:
    # A null would be written as a tombstone.
    return UNSET_VALUE if value is None else value
