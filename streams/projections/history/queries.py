"""Queries of the history: status, lists, and the images of a request in pages that are bounded in bytes."""

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from datetime import UTC, date, datetime
from itertools import groupby
from typing import Any, NamedTuple

from infra.cassandra.insert import Column
from infra.cassandra.session import RETRY_FOR, Session, utc
from streams.projections.history.tables import CELLS, IMAGE, LISTED, SUMS, month_of
from streams.request.lifecycle import Completion, Lifecycle, RequestState
from streams.request.status import Status
from streams.request.tally import IMAGES_PER_CHUNK, Tally
from streams.request.webhook import DeliveryStatus

LIST_PAGE_SIZE = 200
PAGE_BYTES = 4 * 1024 * 1024
"""Bound of a page of images with their cells; a single row may be larger."""
ROW_BYTES = 4096
"""Upper estimate of an image's row without its cells: two URLs of 2,048 characters are most of it."""
CELLS_PAGE_SIZE = 60
"""Rows of a page whose sizes are unknown: 4 MB of cells of 64 KB."""
PRODUCT_PAGE_SIZE = 100
SUMS_PAGE_SIZE = 500
MONTHS_PER_PAGE = 36
"""Months of product history that are read for one page; its cursor continues after them."""

END_OF_TIME = datetime(9999, 1, 1, tzinfo=UTC)
NEWEST_REQUEST = (END_OF_TIME, "")
"""After every time and every id that there may be."""


class ProductCursor(NamedTuple):
    """The position of an image in the history of its product."""

    requested_at: datetime
    request_id: str
    image_index: int


NEWEST_IMAGE = ProductCursor(END_OF_TIME, "", 0)


class StoredImage(NamedTuple):
    """The columns of an image's row that show whether it is settled, without its cells."""

    image_index: int
    run: int | None
    output_path: str | None
    cells_bytes: int | None


class RequestSums(NamedTuple):
    """The sums of a finished request; ``failures``: failed images by reason, of a completed one."""

    succeeded: int
    failed: int
    input_bytes: int
    output_bytes: int
    failures: Mapping[str, int] | None


def _select(columns: Iterable[Column], condition: str) -> str:
    names = ", ".join(["image_index", *(column.name for column in columns)])
    return f"SELECT {names} FROM images_by_request WHERE request_id = ? AND bucket = ?{condition}"  # noqa: S608 - ours


_FOR_CSV = [column for column in IMAGE if column.name in ("run", "row_number", "output_url", "output_path", "reason")]
_SELECT_WHOLE = _select(IMAGE, "")
_SELECT_LISTED = _select(LISTED, " AND image_index >= ? LIMIT ?")
_SELECT_FOR_CSV = _select([*_FOR_CSV, CELLS], " AND image_index >= ? AND image_index <= ?")
_SELECT_STORED = _select([Column("run"), Column("output_path"), Column("cells_bytes")], "")

_SELECT_REASONS = _select([Column("run"), Column("output_path"), Column("reason")], "")

_SELECT_REQUEST = """
    SELECT request_id, owner, created_at, updated_at, completed_at, total, succeeded, failed, input_bytes, output_bytes,
        run, webhook_url, delivered_runs, webhook_states, output_csv_url, output_csv_path, cancelled_run, cancelled_at,
        retried_run, retried_at, expired_at, forgotten_at
    FROM requests WHERE request_id = ?"""
_SELECT_HEADER = "SELECT header FROM requests WHERE request_id = ?"
_SELECT_DAYS = "SELECT day FROM days_by_owner WHERE owner = ? AND list = 'requests' AND day <= ?"
_SELECT_DAY = "SELECT day FROM days_by_owner WHERE owner = ? AND list = 'requests' AND day = ?"
_SELECT_LISTED_REQUEST = """
    SELECT request_id FROM requests_by_owner WHERE owner = ? AND day = ? AND created_at = ? AND request_id = ?"""
_SELECT_OWNED = """
    SELECT created_at, request_id FROM requests_by_owner
    WHERE owner = ? AND day = ? AND (created_at, request_id) < (?, ?)"""
_SELECT_SUMS = f"SELECT {', '.join(SUMS)}, failures FROM sums_by_owner WHERE owner = ? AND day = ?"  # noqa: S608 - ours
_SELECT_REQUEST_SUMS = _SELECT_SUMS + " AND request_id = ?"
_SELECT_MONTHS = "SELECT month, part FROM months_by_owner WHERE owner = ? AND list = 'images' AND month <= ?"
_SELECT_PRODUCT_IMAGES = """
    SELECT requested_at, request_id, image_index, input_url, output_url, input_bytes, output_bytes, format, reason
    FROM images_by_product_month WHERE owner = ? AND product_name = ? AND month = ? AND part = ?
    AND (requested_at, request_id, image_index) < (?, ?, ?)"""


class HistoryQueries:
    """Reads the tables."""

    def __init__(self, session: Session) -> None:
        self._session = session

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

    async def lifecycle(self, request_id: str, *, retry_for: float = RETRY_FOR) -> Lifecycle:
        """The runs of a request; with none while the history has nothing about it."""
        rows = await self._session.execute(_SELECT_REQUEST, (request_id,), retry_for=retry_for)
        return Lifecycle(**_runs_of(rows[0])) if rows else Lifecycle()

    async def header(self, request_id: str) -> tuple[str, ...] | None:
        """The header cells of a request's upload; None before its RequestCreated is here."""
        rows = await self._session.execute(_SELECT_HEADER, (request_id,), retry_for=RETRY_FOR)
        return tuple(rows[0].header) if rows and rows[0].header else None

    async def is_listed(self, owner: str, created_at: datetime, request_id: str) -> bool:
        """Whether a request is in the list of its owner."""
        key = (owner, created_at.date(), created_at, request_id)
        return bool(await self._session.execute(_SELECT_LISTED_REQUEST, key)) and bool(
            await self._session.execute(_SELECT_DAY, key[:2])
        )

    async def listed_images(
        self,
        request_id: str,
        bucket: int,
        *,
        start: int = 0,
        limit: int = IMAGES_PER_CHUNK,
        retry_for: float = RETRY_FOR,
    ) -> dict[int, dict[str, Any]]:
        """The fields of `LISTED` of up to 1,000 consecutive images by index: the first ``limit`` from ``start`` on."""
        parameters = (request_id, bucket, start, limit)
        rows = await self._session.execute(_SELECT_LISTED, parameters, retry_for=retry_for)
        fields = [column.field for column in LISTED]
        return {row[0]: dict(zip(fields, row[1:], strict=True)) for row in rows}

    async def failures(self, request_id: str, bucket: int, *, retry_for: float) -> Iterator[tuple[int, str]]:
        """Run and reason of each failed image among up to 1,000 consecutive ones."""
        rows = await self._session.execute(_SELECT_REASONS, (request_id, bucket), retry_for=retry_for)
        return ((row.run or 0, row.reason) for row in rows if row.output_path is None and row.reason is not None)

    async def whole_images(self, request_id: str, bucket: int) -> dict[int, tuple[Any, ...]]:
        """The columns of `IMAGE` of up to 1,000 consecutive images by index: up to 64 MB, for verification."""
        rows: dict[int, tuple[Any, ...]] = {}
        async for page in self._session.pages(
            _SELECT_WHOLE, (request_id, bucket), page_size=CELLS_PAGE_SIZE, retry_for=RETRY_FOR
        ):
            rows |= {row[0]: tuple(row[1:]) for row in page}
        return rows

    async def stored_images(self, request_id: str, bucket: int) -> list[StoredImage]:
        """Which of up to 1,000 consecutive images have a row, in order."""
        rows = await self._session.execute(_SELECT_STORED, (request_id, bucket), retry_for=RETRY_FOR)
        return [StoredImage(*row) for row in rows]

    async def images(self, request_id: str, bucket: int, stored: Iterable[StoredImage]) -> AsyncIterator[list[Any]]:
        """The rows of ``stored`` as the output CSV needs them, in order, in pages of at most PAGE_BYTES."""
        for first, last in page_ranges(stored):
            parameters = (request_id, bucket, first, last)
            yield await self._session.execute(_SELECT_FOR_CSV, parameters, retry_for=RETRY_FOR)

    async def requests_of(self, owner: str, before: tuple[datetime, str]) -> AsyncIterator[tuple[datetime, str]]:
        """When each request of an owner was created, and its id, newest first, from ``before`` (not included) on."""
        async for days in self._session.pages(_SELECT_DAYS, (owner, before[0].date()), page_size=LIST_PAGE_SIZE):
            for (day,) in days:
                owned = self._session.pages(_SELECT_OWNED, (owner, day, *before), page_size=LIST_PAGE_SIZE)
                async for rows in owned:
                    for row in rows:
                        yield utc(row.created_at), row.request_id

    async def sums_of(self, owner: str, day: date) -> AsyncIterator[list[RequestSums]]:
        """The sums of an owner's finished requests that were created on ``day`` (UTC), in pages."""
        async for rows in self._session.pages(_SELECT_SUMS, (owner, day), page_size=SUMS_PAGE_SIZE):
            yield [RequestSums(*row) for row in rows]

    async def sums_of_request(self, owner: str, created_at: datetime, request_id: str) -> RequestSums | None:
        """The sums of a request as the statistics have them; None before it has finished."""
        rows = await self._session.execute(_SELECT_REQUEST_SUMS, (owner, created_at.date(), request_id))
        return RequestSums(*rows[0]) if rows else None

    async def product_images(
        self, owner: str, product: str, before: ProductCursor, limit: int
    ) -> tuple[list[Any], ProductCursor | None]:
        """Up to ``limit`` rows of an owner's product's images, newest first, and where to continue; None: at the end.

        At most MONTHS_PER_PAGE months are read, so there may be fewer rows although there are more.
        """
        months = await self._session.execute(_SELECT_MONTHS, (owner, month_of(before.requested_at)))
        rows: list[Any] = []
        for number, (month, parts) in enumerate(groupby(months, key=lambda row: row.month)):
            if number == MONTHS_PER_PAGE:
                following = month + 1
                return rows, ProductCursor(datetime(following // 12, following % 12 + 1, 1, tzinfo=UTC), "", 0)
            sources = [
                _rows(
                    self._session.pages(
                        _SELECT_PRODUCT_IMAGES, (owner, product, month, part, *before), page_size=PRODUCT_PAGE_SIZE
                    )
                )
                for _, part in parts
            ]
            async for row in _newest_first(sources):
                if len(rows) == limit:
                    return rows, _cursor_of(rows[-1])
                rows.append(row)
        return rows, None


def page_ranges(stored: Iterable[StoredImage]) -> Iterator[tuple[int, int]]:
    """First and last index of each page: as many consecutive rows as fit into PAGE_BYTES, at least one."""
    first: int | None = None
    last = size = 0
    for image in stored:
        more = ROW_BYTES + (image.cells_bytes or 0)
        if first is not None and size + more > PAGE_BYTES:
            yield first, last
            first, size = None, 0
        first = image.image_index if first is None else first
        last, size = image.image_index, size + more
    if first is not None:
        yield first, last


async def _rows(pages: AsyncIterator[list[Any]]) -> AsyncIterator[Any]:
    async for page in pages:
        for row in page:
            yield row


async def _newest_first(sources: Iterable[AsyncIterator[Any]]) -> AsyncIterator[Any]:
    """Merge rows that are newest first in each source."""
    heads = [(row, source) for source in sources if (row := await anext(source, None)) is not None]
    while heads:
        newest = max(range(len(heads)), key=lambda number: _cursor_of(heads[number][0]))
        row, source = heads[newest]
        yield row
        if (following := await anext(source, None)) is None:
            del heads[newest]
        else:
            heads[newest] = following, source


def _cursor_of(row: Any) -> ProductCursor:
    return ProductCursor(utc(row.requested_at), row.request_id, row.image_index)


def _state_of(row: Any) -> RequestState:
    changes = (row.updated_at, row.cancelled_at, row.retried_at, row.expired_at, row.forgotten_at)
    return RequestState(
        request_id=row.request_id,
        total=row.total,
        owner=row.owner or "",
        created_at=utc(row.created_at),
        updated_at=max(utc(change) for change in changes if change),
        webhook_url=row.webhook_url,
        delivery=max(_deliveries_of(row), default=None),
        **_runs_of(row),
    )


def _deliveries_of(row: Any) -> Iterator[DeliveryStatus]:
    if row.webhook_url and row.completed_at:  # a completion without a delivery status is about to get one
        yield DeliveryStatus.of("pending", row.run or 0)
    for run, state in (row.webhook_states or {}).items():
        yield DeliveryStatus.of(state, run)
    for run in row.delivered_runs or ():
        yield DeliveryStatus.of("delivered", run)


def _runs_of(row: Any) -> dict[str, Any]:
    """The fields of a Lifecycle; a stop has no run in the history."""
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
        "is_forgotten": row.forgotten_at is not None,
    }


def _tally_of(row: Any) -> Tally:
    """The sums of the last run that ended."""
    run = max(row.run or 0, row.cancelled_run or 0)
    return Tally(
        run, row.succeeded or 0, row.failed or 0, row.input_bytes or 0, row.output_bytes or 0, updated_ms=0, states=b""
    )
