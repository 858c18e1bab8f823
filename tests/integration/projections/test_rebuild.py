"""The history rebuilt, and compared with the log, while the agents that write it go on."""

import gc
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from infra.cassandra.session import Session
from infra.settings import Settings
from infra.storage import Storage
from streams.events.base import Event, utc_now
from streams.events.requests import RequestCancelled, RequestRetried, RequestStopped
from streams.log.producer import EventLog
from streams.log.report import Report
from streams.projections.history import History
from streams.projections.output_csv import OutputCsv
from streams.projections.rebuild import rebuild_history, rebuild_outputs, recall
from streams.projections.verify import verify_history
from streams.webhooks.store import Deliveries
from tests.support.examples import NOON, completed, created, failed, output_requested, processed, requested

pytestmark = pytest.mark.slow


@dataclass
class Room:
    """A log, and the history that live agents make of it."""

    settings: Settings
    request_id: str
    session: Session
    log: EventLog
    history: History

    async def happen(self, *events: Event) -> None:
        """They are on the log, and live agents have recorded them."""
        for event in events:
            await self.log.append(event)
            await self.history.record(event)

    async def rebuild(self, history: History | None = None) -> Report:
        deliveries = Deliveries(self.session, self.settings.partitions)
        return await rebuild_history(
            self.settings, history or self.history, deliveries, self.request_id, lambda *_: None
        )

    async def verify(self, history: History | None = None, **earlier: Any) -> Report:
        report = Report(**earlier)
        await verify_history(self.settings, history or self.history, self.request_id, lambda *_: None, report)
        return report

    async def row(self, index: int) -> dict[str, Any]:
        rows = await self.session.execute(
            "SELECT * FROM images_by_request WHERE request_id = ? AND bucket = 0 AND image_index = ?",
            (self.request_id, index),
        )
        return rows[0]._asdict() if rows else {}

    async def forge(self, index: int) -> None:
        """A row without an event, or one that differs from the log."""
        await self.session.execute(
            "INSERT INTO images_by_request (request_id, bucket, image_index, output_path) VALUES (?, 0, ?, 'forged')",
            (self.request_id, index),
        )


@asynccontextmanager
async def room(settings: Settings, request_id: str) -> AsyncIterator[Room]:
    session = await Session.connect(settings)
    log = EventLog(settings)
    await log.start()
    try:
        yield Room(settings, request_id, session, log, History(session))
    finally:
        await log.stop()
        await session.close()


class Interrupted(History):
    """Something happens just before the rows of a request are read."""

    def __init__(self, at: Room, *events: Event) -> None:
        super().__init__(at.session)
        self._at = at
        self._events: Sequence[Event] = events

    async def interrupt(self) -> None:
        events, self._events = self._events, ()
        await self._at.happen(*events)

    async def whole_images(self, *arguments: Any, **options: Any) -> dict[int, tuple[Any, ...]]:
        await self.interrupt()
        return await super().whole_images(*arguments, **options)


class Measured(History):
    """Notes the memory that our own code keeps when it is first read; what Kafka's client reads ahead has its bound."""

    traced = 0

    async def whole_images(self, *arguments: Any, **options: Any) -> dict[int, tuple[Any, ...]]:
        if not self.traced:
            gc.collect()
            ours = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*/streams/*")])
            self.traced = sum(each.size for each in ours.statistics("filename"))
        return await super().whole_images(*arguments, **options)


def again(request_id: str, index: int) -> Any:
    """The image, asked for in a retry that has begun by now."""
    return requested(request_id, index, run=1, time=utc_now() - timedelta(seconds=5))


# --- rebuild


@pytest.mark.parametrize("has_ended", [False, True])
async def test_result_arriving_during_rebuild_is_kept(settings: Settings, request_id: str, has_ended: bool) -> None:
    async with room(settings, request_id) as at:
        await at.happen(created(request_id, total=3), processed(requested(request_id, 0)))
        late: list[Event] = [processed(requested(request_id, 1))]
        if has_ended:
            stopped = RequestStopped(**completed(request_id).model_dump(), time=NOON + timedelta(hours=1))
            await at.happen(RequestCancelled(request_id=request_id, time=NOON), stopped)
            retried = RequestRetried(request_id=request_id, run=1, created_at=NOON)
            late = [retried, processed(again(request_id, 1))]
        await at.forge(2)
        history = Interrupted(at, *late)
        await at.rebuild(history)
        await history.interrupt()  # if it was not: rows of a request under way are not looked through
        assert (await at.row(1))["output_path"] == "images/1.jpg"
        assert bool(await at.row(2)) is not has_ended, "only of what has ended all is known"


async def test_results_of_running_retry_survive_the_rebuild(settings: Settings, request_id: str) -> None:
    async with room(settings, request_id) as at:
        images = [requested(request_id, index) for index in range(2)]
        await at.happen(
            created(request_id, total=2),
            *(failed(image) for image in images),
            completed(request_id, total=2, succeeded=0, failed=2),
            RequestRetried(request_id=request_id, run=1, created_at=NOON, time=utc_now() - timedelta(seconds=5)),
        )
        await at.rebuild()
        second = [processed(again(request_id, 0)), failed(again(request_id, 1), "fetch_http_410")]
        done = completed(request_id, run=1, time=utc_now() - timedelta(seconds=1), total=2, succeeded=1, failed=1)
        await at.happen(*second, done)
        assert (await at.row(0))["output_path"] == "images/0.jpg"
        assert ((await at.row(1))["run"], (await at.row(1))["reason"]) == (1, "fetch_http_410")
        status = await at.history.status(request_id)
        assert status is not None
        assert (status.status, status.run, status.succeeded) == ("completed", 1, 1)


async def test_rebuild_of_completed_request_overwrites_wrong_rows(settings: Settings, request_id: str) -> None:
    async with room(settings, request_id) as at:
        image = requested(request_id)
        await at.happen(created(request_id), processed(image), completed(request_id, total=1))
        await at.forge(0)
        assert (await at.row(0))["output_path"] == "forged"
        await at.rebuild()
        assert (await at.row(0))["output_path"] == "images/0.jpg"
        # A retry of later outlives it, as it does what it follows.
        await at.happen(
            RequestRetried(request_id=request_id, run=1, created_at=NOON),
            processed(requested(request_id, run=1, time=utc_now())),
        )
        assert (await at.row(0))["run"] == 1


async def test_recalled_result_survives_a_younger_deletion(settings: Settings, request_id: str) -> None:
    async with room(settings, request_id) as at:
        images = [requested(request_id), requested(request_id, run=1, time=NOON + timedelta(hours=1))]
        await at.happen(processed(images[1]), failed(images[0]))
        await at.history.delete_image(request_id, 0)
        await recall(settings, at.history, request_id, NOON)
        assert (await at.row(0))["output_path"] == "images/0.jpg"
        assert (await at.row(0))["run"] == 1


# --- comparison


async def test_result_arriving_during_verification_is_no_difference(settings: Settings, request_id: str) -> None:
    async with room(settings, request_id) as at:
        await at.happen(created(request_id, total=3), processed(requested(request_id, 0)))
        first = await at.verify(Interrupted(at, processed(requested(request_id, 1))))
        assert first.differences == [f"{request_id}/1: a row, but no event"]
        second = await at.verify(among=first.marks)
        assert second.differences == []
        await at.forge(1)
        third = await at.verify()
        assert third.difference_count == 1
        fourth = await at.verify(Interrupted(at, processed(requested(request_id, 2))), among=third.marks)
        assert fourth.differences == third.differences, "what is new isn't there for a second time"


async def test_verification_holds_no_results_in_memory(settings: Settings, request_id: str) -> None:
    images = 4000
    async with room(settings, request_id) as at:
        await at.log.append_all([processed(requested(request_id, index)) for index in range(images)])
        history = Measured(at.session)
        tracemalloc.start()
        try:
            report = await at.verify(history)
        finally:
            tracemalloc.stop()
        assert report.difference_count == images, "they have no rows"
        assert 0 < history.traced < 200 * images


async def test_success_before_a_later_failure_is_no_difference(settings: Settings, request_id: str) -> None:
    async with room(settings, request_id) as at:
        await at.happen(
            created(request_id),
            processed(requested(request_id)),
            failed(requested(request_id, run=1)),
            failed(requested(request_id, run=1)),
        )
        assert (await at.verify()).differences == []
        await at.session.execute(
            "UPDATE images_by_request SET sha256 = 'x' WHERE request_id = ? AND bucket = 0 AND image_index = 0",
            (request_id,),
        )
        assert (await at.verify()).differences == [f"{request_id}/0: sha256 is 'x', which differs from the log"]


async def test_wrong_sums_of_a_completed_request_are_found(settings: Settings, request_id: str) -> None:
    async with room(settings, request_id) as at:
        await at.happen(created(request_id), processed(requested(request_id)), completed(request_id))
        assert (await at.verify()).differences == []
        await at.session.execute("UPDATE requests SET output_bytes = 7 WHERE request_id = ?", (request_id,))
        (difference,) = (await at.verify()).differences
        assert "'output bytes': 7" in difference


async def test_output_csv_is_compared_with_its_last_completion(settings: Settings, request_id: str) -> None:
    async with room(settings, request_id) as at:
        storage = Storage.of(settings)
        output = OutputCsv(at.history, storage, at.log, settings.data_dir / "spool", history_timeout=0)

        async def compared(*, verify: bool = True) -> list[str]:
            report = Report()
            await rebuild_outputs(settings, output, request_id, lambda *_: None, report, verify=verify)
            return report.differences

        image = requested(request_id)
        early, late = output_requested([failed(image)]), output_requested([processed(image)])
        await at.happen(created(request_id), failed(image), early)
        assert await compared() == [], "nobody has written it yet"
        await output.publish(early)
        assert await compared() == []
        await at.happen(processed(image), late)
        await output.publish(late)
        await at.log.append(early)  # put off, and read after the one that is right
        assert await compared() == []
        await storage.remove(f"csv/{request_id}")
        assert len(await compared(verify=False)) == 1
        assert await compared() == []
