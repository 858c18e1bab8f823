"""Product names and URLs of a forgotten request leave the read models, and no rebuild brings them back."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from infra.cassandra.schema import migrate
from infra.cassandra.session import Session
from infra.settings import Settings
from streams.events.base import Event, Offsets, utc_now
from streams.events.images import ImageRequested
from streams.events.progress import ImagesRerequested, ImagesSettled
from streams.events.requests import RequestForgotten, RequestRetried, RequestStopped
from streams.log.producer import EventLog
from streams.log.report import Report
from streams.projections.forget import forget
from streams.projections.history import History
from streams.projections.history.queries import NEWEST_IMAGE
from streams.projections.image_messages import ImageMessages
from streams.projections.rebuild import rebuild_history
from streams.projections.verify import verify_history
from streams.webhooks.message import completion_id, images_id
from streams.webhooks.store import Deliveries
from tests.support.examples import completed, created, failed, processed, requested

pytestmark = pytest.mark.slow

TABLES = ("requests", "images_by_request", "images_by_product_month", "webhook_deliveries")
RECEIVER = "https://secret-receiver.example/hook"


async def everything(session: Session, request_id: str) -> str:
    """Every row of the history and of the webhooks that is about the request or its product, as text."""
    found: list[Any] = []
    for table in TABLES:
        rows = await session.execute(f"SELECT * FROM {table}", ())
        found += [row for row in rows if request_id in str(row)]
    return str(found)


async def test_forgotten_names_stay_away_through_redelivery_and_rebuild(settings: Settings, request_id: str) -> None:
    """Also those of an earlier run, and of messages about images; the numbers stay."""
    settings = settings.model_copy(update={"cassandra_keyspace": f"test_{uuid4().hex[:12]}"})  # it truncates tables
    await migrate(settings)
    session, log = await Session.connect(settings), EventLog(settings)
    await log.start()
    try:
        history, deliveries = History(session), Deliveries(session, settings.partitions)
        messages = ImageMessages(history, deliveries)
        owner, product = f"owner of {request_id}", f"Secret of {request_id}"
        began = utc_now() - timedelta(minutes=1)

        def image(index: int, run: int = 0) -> Any:
            of_product = {"product_name": product, "owner": owner, "input_url": "https://secret-shop.example/1.jpg"}
            return requested(request_id, index, run=run, time=began + timedelta(seconds=run), **of_product)

        created_event = created(
            request_id, total=2, owner=owner, time=began, webhook_url=RECEIVER, header=("Secret header",)
        )
        settled = ImagesSettled(
            request_id=request_id,
            run=1,
            first=0,
            count=2,
            created_at=began,
            webhook_url=RECEIVER,
            webhook_events=("image.processed", "image.failed"),
            owner=owner,
        )
        sums = {"total": 2, "succeeded": 1, "failed": 1, "owner": owner, "webhook_url": RECEIVER, "created_at": began}
        events: list[Event] = [
            created_event,
            failed(image(0)),
            failed(image(1)),
            completed(request_id, time=began, **{**sums, "succeeded": 0, "failed": 2}),
            processed(image(0, run=1)),
            failed(image(1, run=1)),
            settled,
            completed(request_id, run=1, time=began + timedelta(seconds=9), failures={"fetch_http_404": 1}, **sums),
        ]

        async def happen(*happened: Event) -> None:
            for event in happened:
                if isinstance(event, ImagesSettled):
                    await messages.record(event)
                else:
                    await history.record(event)
                    await deliveries.record(event)

        for event in events:
            await log.append(event)
        await happen(*events)
        assert product in await everything(session, request_id)
        assert RECEIVER in await everything(session, request_id)
        await forget(settings, history, deliveries, request_id, began)
        assert product in await everything(session, request_id), "without the event nothing is removed"

        forgotten = RequestForgotten(request_id=request_id, created_at=began)
        await log.append(forgotten)
        await happen(forgotten)
        await forget(settings, history, deliveries, request_id, began)
        await forget(settings, history, deliveries, request_id, began)
        await happen(*events)  # redelivered
        for _ in range(2):
            assert "secret" not in (await everything(session, request_id)).lower()
            assert await history.whole_images(request_id, 0) == {}
            assert await history.product_images(owner, product, NEWEST_IMAGE, 10) == ([], None)
            messages_of = [completion_id(request_id, run) for run in (0, 1)]
            messages_of += [images_id(settled, kind) for kind in settled.webhook_events]
            assert [(await deliveries.load(each)).origin for each in messages_of] == [None] * 4
            status = await history.status(request_id)
            assert status is not None
            assert (status.status, status.forgotten, status.webhook) == ("expired", True, None)
            assert (status.total, status.succeeded, status.failed) == (2, 1, 1)
            report = Report()
            await verify_history(settings, history, request_id, lambda *_: None, report)
            assert report.differences == []
            # As when Cassandra has purged the deletions: only the log tells what is forgotten.
            for table in TABLES:
                await session.execute(f"TRUNCATE {table}", ())
            await rebuild_history(settings, history, deliveries, request_id, lambda *_: None)
    finally:
        await log.stop()
        await session.close()


async def test_late_result_of_stopped_request_stays_forgotten(settings: Settings, request_id: str) -> None:
    """A compress worker that was expelled may write the result of an image after its request was forgotten."""
    session, log = await Session.connect(settings), EventLog(settings)
    await log.start()
    try:
        history, deliveries = History(session), Deliveries(session, settings.partitions)
        began = utc_now() - timedelta(minutes=1)

        async def written(image: ImageRequested) -> Offsets:
            metadata = await log.append(image)
            return {metadata.partition: (metadata.offset, metadata.offset + 1000)}

        def image(run: int) -> ImageRequested:
            time = began + timedelta(seconds=run)
            return requested(request_id, run=run, time=time, product_name=f"Secret of {request_id}")

        stopped = RequestStopped(**completed(request_id, total=1, succeeded=0, failed=0).model_dump())
        offsets = [await written(image(run)) for run in range(2)]
        for event in (
            created(request_id, time=began, image_offsets=offsets[0] | {99: (0, 0)}),  # as of another cluster
            stopped,
            RequestRetried(request_id=request_id, run=1, created_at=began),
            ImagesRerequested(request_id=request_id, run=1, cause="retry", missing=1, image_offsets=offsets[1]),
            stopped.model_copy(update={"run": 1}),
            RequestForgotten(request_id=request_id, created_at=began),
        ):
            await log.append(event)
            await history.record(event)
        await forget(settings, history, deliveries, request_id, began)
        for run in range(2):
            await history.record(processed(image(run)))
        assert "Secret" not in await everything(session, request_id)
    finally:
        await log.stop()
        await session.close()
