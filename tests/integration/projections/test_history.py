"""The history on a real Cassandra: the same rows whatever order and however often the events come."""

import asyncio
import gc
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from itertools import permutations
from random import Random
from typing import Any
from uuid import uuid4

import pytest

from infra.cassandra import session as session_module
from infra.cassandra.session import CassandraUnavailableError, Session, utc
from infra.settings import Settings
from streams.events.base import Event
from streams.events.images import ImageFailed, ImageProcessed
from streams.events.requests import RequestCancelled, RequestExpired, RequestRetried, RequestStopped
from streams.events.webhooks import WebhookAttempted, WebhookDelivered, WebhookFailed
from streams.projections.history import History
from streams.projections.history.queries import (
    MONTHS_PER_PAGE,
    NEWEST_IMAGE,
    NEWEST_REQUEST,
    PAGE_BYTES,
    ProductCursor,
)
from streams.request.status import completed_status
from tests.support.examples import HEADER, NOON, completed, created, failed, output_requested, processed, requested
from tests.support.tcp_proxy import TcpProxy

OF_PRODUCT = """
    SELECT * FROM images_by_product_month
    WHERE owner = '' AND product_name = ? AND month IN (24322, 24323) AND part = 0"""
RECEIVER = "https://receiver.example/hook"


@asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[Session]:
    session = await Session.connect(settings)
    try:
        yield session
    finally:
        await session.close()


async def rows_of(session: Session, request_id: str, *, buckets: int = 1, products: Sequence[str] = ()) -> list[Any]:
    """Everything that the history holds of a request, as plain values."""
    rows = await session.execute("SELECT * FROM requests WHERE request_id = ?", (request_id,))
    for bucket in range(buckets):
        rows += await session.execute(
            "SELECT * FROM images_by_request WHERE request_id = ? AND bucket = ?", (request_id, bucket)
        )
    for product in products:
        rows += await session.execute(OF_PRODUCT, (product,))
    return [row._asdict() for row in rows]


async def images_of(session: Session, request_id: str, bucket: int) -> list[Any]:
    history = History(session)
    stored = await history.stored_images(request_id, bucket)
    return [row async for page in history.images(request_id, bucket, stored) for row in page]


async def record_all(session: Session, events: Sequence[Event]) -> None:
    history = History(session)
    for event in events:
        await history.record(event)


def of_request(event: Event, request_id: str) -> Event:
    """The same event of another request, whose products are its own, too."""
    own = {"product_name": f"Shoe of {request_id}"} if isinstance(event, ImageProcessed | ImageFailed) else {}
    return event.model_copy(update={"request_id": request_id, **own})


# --- rows


@pytest.mark.slow
async def test_reordered_and_repeated_events_make_the_same_rows(cassandra_settings: Settings) -> None:
    images = [requested(index=index) for index in range(4)]
    again = requested(index=1, run=1)
    events: list[Event] = [
        created(total=4, webhook_url=RECEIVER),
        processed(images[0]),
        failed(images[1]),
        failed(images[2]),
        processed(images[3]),
        completed(webhook_url=RECEIVER),
        WebhookDelivered(request_id="any", time=NOON + timedelta(minutes=2), webhook_id="msg_1", attempts=1),
        processed(again),
        completed(run=1, time=NOON + timedelta(hours=2), succeeded=3, failed=1, webhook_url=RECEIVER),
    ]

    async def rows(session: Session, order: Sequence[Event]) -> list[Any]:
        request_id = str(uuid4())
        await record_all(session, [of_request(event, request_id) for event in order])
        found = await rows_of(session, request_id, products=[f"Shoe of {request_id}"])
        return [{name: str(value).replace(request_id, "…") for name, value in row.items()} for row in found]

    async with connected(cassandra_settings) as session:
        in_order = await rows(session, events)
        assert len(in_order) == 1 + 4 + 5
        random = Random(7)
        for _ in range(12):
            order = [*events, *random.choices(events, k=4)]
            random.shuffle(order)
            assert await rows(session, order) == in_order


@pytest.mark.parametrize("order", list(permutations(range(3))))
async def test_late_failure_does_not_overwrite_a_success(
    cassandra_settings: Settings, request_id: str, order: Sequence[int]
) -> None:
    image = requested(request_id, product_name=request_id)
    success = processed(image)
    late = failed(image, "fetch_timeout").model_copy(update={"time": success.time + timedelta(hours=1)})
    events = [failed(image), success, late]

    async with connected(cassandra_settings) as session:
        await record_all(session, [events[number] for number in order])
        (row,) = await session.execute(
            "SELECT * FROM images_by_request WHERE request_id = ? AND bucket = 0", (request_id,)
        )
        assert (row.output_url, row.output_path) == (success.output_url, success.output_path)
        assert utc(row.settled_at) == success.time
        (product,) = await session.execute(OF_PRODUCT, (request_id,))
        assert product.output_url == row.output_url


@pytest.mark.parametrize("order", list(permutations(range(2))))
async def test_later_run_outranks_the_first_run(
    cassandra_settings: Settings, request_id: str, order: Sequence[int]
) -> None:
    first = failed(requested(request_id), "fetch_http_404")
    events = [first, failed(requested(request_id, run=1), "fetch_http_410")]

    async with connected(cassandra_settings) as session:
        await record_all(session, [events[number] for number in order])
        (row,) = await images_of(session, request_id, 0)
        assert (row.run, row.reason) == (1, "fetch_http_410")


async def test_images_are_listed_in_order_across_chunks(cassandra_settings: Settings, request_id: str) -> None:
    indexes = [0, 1, 999, 1000, 1001, 2500]

    async with connected(cassandra_settings) as session:
        events = [processed(requested(request_id, index)) for index in indexes]
        await record_all(session, Random(1).sample(events, len(events)))
        found = [[row.image_index for row in await images_of(session, request_id, bucket)] for bucket in range(4)]
        assert found == [[0, 1, 999], [1000, 1001], [2500], []]
        row = (await images_of(session, request_id, 2))[0]
        image = requested(request_id, 2500)
        assert tuple(row.cells) == image.cells
        assert row.row_number == 2500


async def test_product_history_lists_newest_processing_first(cassandra_settings: Settings, request_id: str) -> None:
    product = f"Shoe {request_id}"
    ids = [f"{request_id}-{number}" for number in range(3)]

    async with connected(cassandra_settings) as session:
        for days, name in enumerate(ids):
            at = NOON + timedelta(days=days)
            images = [requested(name, index, product_name=product, time=at) for index in range(2)]
            await record_all(session, [processed(images[0]), failed(images[1], "too_large")])
        rows = await session.execute(OF_PRODUCT, (product,))
        assert [(row.request_id, row.image_index) for row in rows] == [
            (name, index) for name in reversed(ids) for index in (1, 0)
        ]
        assert [row.reason for row in rows] == ["too_large", None] * 3
        assert [row.output_bytes for row in rows] == [None, 400] * 3


@pytest.mark.parametrize("rebuilt_at", [None, NOON + timedelta(days=1)])
@pytest.mark.parametrize("order", [(0, 1), (1, 0), (0, 1, 0)])
async def test_late_success_corrects_the_sums_of_its_run(
    cassandra_settings: Settings, request_id: str, rebuilt_at: datetime | None, order: Sequence[int]
) -> None:
    """Although both completions are of one moment, and Cassandra prefers the greater value of two."""
    events = [
        completed(request_id, total=10, succeeded=8, failed=2, input_bytes=8000),
        completed(request_id, total=10, succeeded=9, failed=1, input_bytes=9000),
    ]

    async with connected(cassandra_settings) as session:
        history = History(session)
        await history.record(created(request_id, total=10), rebuilt_at=rebuilt_at)
        for number in order:
            await history.record(events[number], rebuilt_at=rebuilt_at)
        status = await history.status(request_id)
        assert status is not None
        assert (status.succeeded, status.failed, status.input_bytes) == (9, 1, 9000)


@pytest.mark.slow
async def test_pages_of_large_cells_are_bounded_in_bytes(cassandra_settings: Settings, request_id: str) -> None:
    cells = ("1", "Shoe", "é" * 30_000)
    images = [processed(requested(request_id, index, cells=cells)) for index in range(150)]

    async with connected(cassandra_settings) as session:
        await record_all(session, images)
        history = History(session)
        stored = await history.stored_images(request_id, 0)
        pages = [page async for page in history.images(request_id, 0, stored)]
        assert [row.image_index for page in pages for row in page] == list(range(150))
        assert max(sum(len(cell.encode()) for row in page for cell in row.cells) for page in pages) < PAGE_BYTES
        assert len(pages) == 3


async def product_history(history: History, owner: str, limit: int) -> tuple[list[ProductCursor], int]:
    """All places of an owner's product "Shoe", in the order of their pages, and the number of pages."""
    places: list[ProductCursor] = []
    following: ProductCursor | None = NEWEST_IMAGE
    pages = 0
    while following is not None:
        rows, following = await history.product_images(owner, "Shoe", following, limit)
        assert len(rows) <= limit
        places += [ProductCursor(utc(row.requested_at), row.request_id, row.image_index) for row in rows]
        pages += 1
    return places, pages


@pytest.mark.slow
async def test_product_history_pages_over_months_and_parts(cassandra_settings: Settings, request_id: str) -> None:
    """An image with a high index is in another partition than those of the same upload before it."""
    images = [
        requested(f"{request_id}-{days}", index, owner=request_id, product_name="Shoe", time=NOON + timedelta(days))
        for days in (0, 20, 45, 400)
        for index in (0, 1, 70_000)
    ]

    async with connected(cassandra_settings) as session:
        await record_all(session, [processed(image) for image in Random(3).sample(images, len(images))])
        history = History(session)
        expected = sorted((ProductCursor(one.time, one.request_id, one.index) for one in images), reverse=True)
        for limit in (1, 4, 12, 100):
            assert (await product_history(history, request_id, limit))[0] == expected
        assert await history.product_images(request_id, "Boot", NEWEST_IMAGE, 10) == ([], None)


@pytest.mark.slow
async def test_product_history_reads_a_bounded_number_of_months(cassandra_settings: Settings, request_id: str) -> None:
    months = 2 * MONTHS_PER_PAGE + 1
    images = [
        requested(request_id, owner=request_id, product_name="Shoe" if number == 0 else "Boot", time=time)
        for number in range(months)
        if (time := NOON.replace(year=2020 + number // 12, month=number % 12 + 1))
    ]

    async with connected(cassandra_settings) as session:
        await record_all(session, [failed(image) for image in images])
        places, pages = await product_history(History(session), request_id, 10)
        assert [place.requested_at for place in places] == [images[0].time]
        assert pages == 3


async def test_events_outside_the_history_write_no_row(cassandra_settings: Settings, request_id: str) -> None:
    events = [
        requested(request_id),
        output_requested([failed(requested(request_id))]),
        WebhookAttempted(request_id=request_id, webhook_id="msg_1", attempt=1, milliseconds=1),
    ]

    async with connected(cassandra_settings) as session:
        await record_all(session, events)
        assert await rows_of(session, request_id) == []


@pytest.mark.parametrize("product", ["ü" * 500, "a'b; DROP TABLE requests; --", "\u0000", " ", "Ἀ/\\%"])
async def test_every_valid_product_name_is_stored(cassandra_settings: Settings, request_id: str, product: str) -> None:
    async with connected(cassandra_settings) as session:
        await record_all(session, [processed(requested(request_id, product_name=product))])
        (row,) = await session.execute(
            "SELECT product_name FROM images_by_request WHERE request_id = ? AND bucket = 0", (request_id,)
        )
        assert row.product_name == product
        rows = await session.execute(OF_PRODUCT, (product,))
        assert request_id in {row.request_id for row in rows}


async def test_largest_numbers_of_an_event_are_stored(cassandra_settings: Settings, request_id: str) -> None:
    last = 2**31 - 1
    image = requested(request_id, 2**24 - 1, row=last, position=last, run=2**16 - 1)
    done = processed(image, input_bytes=2**40 - 1, output_bytes=2**40 - 1).model_copy(
        update={"width": last, "height": last}
    )

    async with connected(cassandra_settings) as session:
        sums = {
            "total": last,
            "succeeded": last,
            "failed": last,
            "input_bytes": 2**63 - 1,
            "output_bytes": 2**63 - 1,
        }
        await record_all(session, [done, completed(request_id, run=2**16 - 1, **sums)])
        found = (await History(session).listed_images(request_id, image.index // 1000))[image.index]
        assert (found["row"], found["position"], found["run"]) == (last, last, 2**16 - 1)
        status = await History(session).status(request_id)
        assert status is not None
        assert status.input_bytes == 2**63 - 1


# --- status


async def test_status_follows_the_lifecycle_of_a_request(cassandra_settings: Settings, request_id: str) -> None:
    done = completed(request_id, webhook_url=RECEIVER, owner="shop")
    told = WebhookDelivered(request_id=request_id, time=NOON + timedelta(minutes=2), webhook_id="msg_1", attempts=1)

    async with connected(cassandra_settings) as session:
        history = History(session)
        assert await history.status(request_id) is None
        await history.record(processed(requested(request_id)))
        assert await history.status(request_id) is None, "an image alone makes no request"
        await history.record(created(request_id, total=3, owner="shop", webhook_url=RECEIVER))
        status = await history.status(request_id)
        assert status is not None
        assert (status.status, status.total, status.owner, status.webhook) == ("processing", 3, "shop", None)
        assert (status.created_at, status.completed_at) == (NOON, None)
        await history.record(done)
        assert await history.status(request_id) == completed_status(done, "pending")
        await history.record(told)
        assert await history.status(request_id) == completed_status(done, "delivered")


async def test_webhook_that_was_given_up_is_failed(cassandra_settings: Settings, request_id: str) -> None:
    given_up = WebhookFailed(request_id=request_id, webhook_id="msg_1", attempts=9, reason="http_500")

    async with connected(cassandra_settings) as session:
        await record_all(session, [completed(request_id, webhook_url=RECEIVER), given_up])
        status = await History(session).status(request_id)
        assert status is not None
        assert status.webhook == "failed"


@pytest.mark.parametrize("order", list(permutations(range(3))))
async def test_delivered_webhook_stays_delivered_whatever_follows(
    cassandra_settings: Settings, request_id: str, order: Sequence[int]
) -> None:
    told: dict[str, Any] = {"request_id": request_id, "webhook_id": "msg_1", "attempts": 1}
    events = [
        completed(request_id, webhook_url=RECEIVER),
        WebhookDelivered(**told, time=NOON + timedelta(minutes=2)),
        WebhookFailed(**told, time=NOON + timedelta(days=2), after_attempt=1, reason="http_500"),
    ]

    async with connected(cassandra_settings) as session:
        await record_all(session, [events[number] for number in order])
        status = await History(session).status(request_id)
        assert status is not None
        assert status.webhook == "delivered"


async def test_header_of_the_upload_is_kept(cassandra_settings: Settings, request_id: str) -> None:
    async with connected(cassandra_settings) as session:
        await record_all(session, [completed(request_id), created(request_id)])
        (row,) = await session.execute("SELECT header FROM requests WHERE request_id = ?", (request_id,))
        assert tuple(row.header) == HEADER


# --- Cassandra is away


@asynccontextmanager
async def through_a_door(settings: Settings) -> AsyncIterator[tuple[TcpProxy, Session]]:
    assert settings.cassandra_hosts is not None
    door = TcpProxy(settings.cassandra_hosts)
    await door.open()
    try:
        async with connected(settings.model_copy(update={"cassandra_hosts": door.address})) as session:
            yield door, session
    finally:
        await door.shut()


async def test_unreachable_cassandra_is_a_clear_error() -> None:
    async with asyncio.timeout(60):
        with pytest.raises(CassandraUnavailableError, match=r"^Cassandra can't be used at 127\.0\.0\.1:1: .+"):
            await Session.connect(Settings(cassandra_hosts="127.0.0.1:1"))


async def test_missing_keyspace_is_a_clear_error(cassandra_address: str) -> None:
    with pytest.raises(CassandraUnavailableError, match="nothing_here"):
        await Session.connect(Settings(cassandra_hosts=cassandra_address, cassandra_keyspace="nothing_here"))


async def test_missing_hosts_error_names_the_setting() -> None:
    with pytest.raises(CassandraUnavailableError, match="SHRINKSTREAM_CASSANDRA_HOSTS"):
        await Session.connect(Settings())


async def test_query_to_stopped_cassandra_fails_in_bounded_time(cassandra_settings: Settings, request_id: str) -> None:
    async with through_a_door(cassandra_settings) as (door, session):
        history = History(session)
        assert await history.status(request_id) is None
        await door.shut()
        async with asyncio.timeout(60):
            with pytest.raises(CassandraUnavailableError, match="doesn't answer"):
                await history.status(request_id)


async def test_query_to_silent_cassandra_fails_in_bounded_time(
    cassandra_settings: Settings, request_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with through_a_door(cassandra_settings) as (door, session):
        history = History(session)
        assert await history.status(request_id) is None
        monkeypatch.setattr(session_module, "REQUEST_TIMEOUT", 0.5)
        door.block()
        async with asyncio.timeout(60):
            with pytest.raises(CassandraUnavailableError):
                await history.status(request_id)


@pytest.mark.slow
async def test_write_waits_for_a_returning_cassandra(cassandra_settings: Settings, request_id: str) -> None:
    async with through_a_door(cassandra_settings) as (door, session):
        history = History(session)
        await history.record(created(request_id))
        await door.shut()
        writing = asyncio.create_task(history.record(completed(request_id)))
        await asyncio.sleep(0.3)
        assert not writing.done()
        await door.open()
        async with asyncio.timeout(60):
            await writing
        status = await history.status(request_id)
        assert status is not None
        assert status.status == "completed"


async def test_invalid_statement_is_not_retried(cassandra_settings: Settings) -> None:
    async with connected(cassandra_settings) as session, asyncio.timeout(60):
        with pytest.raises(Exception, match="nothing_here") as error:
            await session.execute("SELECT * FROM nothing_here", retry_for=300)
        assert not isinstance(error.value, CassandraUnavailableError)


# --- pages


async def test_query_pages_through_any_number_of_rows(cassandra_settings: Settings, request_id: str) -> None:
    async with connected(cassandra_settings) as session:
        await asyncio.gather(
            *(
                session.execute(
                    "INSERT INTO images_by_request (request_id, bucket, image_index) VALUES (?, 0, ?)",
                    (request_id, index),
                )
                for index in range(700)
            )
        )
        query = "SELECT image_index FROM images_by_request WHERE request_id = ? AND bucket = 0"
        pages = [page async for page in session.pages(query, (request_id,), page_size=300)]
        assert [len(page) for page in pages] == [300, 300, 100]
        assert [row.image_index for page in pages for row in page] == list(range(700))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(session_module, "PAGE_SIZE", 100)
            assert len(await session.execute(query, (request_id,))) == 700


# --- commands


async def test_cancelled_and_retried_status_is_independent_of_event_order(
    cassandra_settings: Settings,
) -> None:
    at = [NOON + timedelta(minutes=minutes) for minutes in range(10)]
    story: list[tuple[Event, tuple[str, int, int, str | None]]] = [
        (created(total=3, webhook_url=RECEIVER, time=at[0]), ("processing", 0, 0, None)),
        (RequestCancelled(request_id="any", time=at[1]), ("cancelled", 0, 0, None)),
        (RequestStopped(**completed(succeeded=1, failed=1).model_dump(), time=at[2]), ("cancelled", 1, 1, None)),
        (RequestRetried(request_id="any", run=1, created_at=at[0], time=at[3]), ("processing", 1, 0, None)),
        (
            completed(run=1, time=at[4], succeeded=2, failed=1, webhook_url=RECEIVER),
            ("completed", 2, 1, "pending"),
        ),
        (
            WebhookDelivered(request_id="any", run=1, webhook_id="msg_1", attempts=1, time=at[5]),
            ("completed", 2, 1, "delivered"),
        ),
        (RequestRetried(request_id="any", run=2, created_at=at[0], time=at[6]), ("processing", 2, 0, None)),
        (
            completed(run=2, time=at[7], succeeded=3, failed=0, webhook_url=RECEIVER),
            ("completed", 3, 0, "pending"),
        ),
    ]

    async with connected(cassandra_settings) as session:
        history, random = History(session), Random(5)
        for length in range(1, len(story) + 1):
            for rebuilt_at in (None, NOON + timedelta(days=1)):
                request_id = str(uuid4())
                events = [of_request(event, request_id) for event, _ in story[:length]]
                random.shuffle(events)
                for event in [*events, *random.choices(events, k=2)]:
                    await history.record(event, rebuilt_at=rebuilt_at)
                status = await history.status(request_id)
                assert status is not None
                told = (status.status, status.succeeded, status.failed, status.webhook)
                assert told == story[length - 1][1], f"after {length} events"


async def test_requests_of_owner_are_listed_over_days_without_gap(cassandra_settings: Settings) -> None:
    owner = f"owner-{uuid4()}"
    days = (0, 0, 1, 40, 400)
    events = [
        created(str(uuid4()), owner=owner, time=NOON + timedelta(days=day, seconds=n)) for n, day in enumerate(days)
    ]

    async with connected(cassandra_settings) as session:
        await record_all(session, [*events, *events[:2]])
        history = History(session)
        places = [place async for place in history.requests_of(owner, NEWEST_REQUEST)]
        assert places == [(event.time, event.request_id) for event in reversed(events)]
        for number, place in enumerate(places):
            assert [after async for after in history.requests_of(owner, place)] == places[number + 1 :]


# --- retention


async def test_expired_request_stays_expired_in_any_event_order(
    cassandra_settings: Settings,
) -> None:
    events: list[Event] = [
        created(),
        completed(),
        RequestExpired(request_id="any", time=NOON + timedelta(days=30)),
    ]

    async with connected(cassandra_settings) as session:
        for order in permutations(events):
            own = str(uuid4())
            await record_all(session, [of_request(event, own) for event in order])
            status = await History(session).status(own)
            assert status is not None
            assert (status.status, status.succeeded) == ("expired", 2)
            assert (status.output_csv_url, status.output_csv_path) == (None, None)
            life = await History(session).lifecycle(own)
            assert (life.run, life.is_completed, life.is_expired) == (0, True, True)
        await record_all(session, [RequestRetried(request_id=own, run=1, created_at=NOON, time=NOON)])
        assert await History(session).status(own) == status, "a retry that came too late doesn't count"


async def test_failed_writes_of_an_image_leave_no_error_unread(cassandra_settings: Settings, request_id: str) -> None:
    unread: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unread.append(context))
    async with connected(cassandra_settings) as session:
        image = processed(requested(request_id)).model_copy(update={"index": 2**40})  # no int in either table
        with pytest.raises(TypeError, match="image_index"):
            await History(session).record(image)
    gc.collect()
    assert unread == []
