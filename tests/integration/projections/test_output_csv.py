"""The output CSV from a real history into a real folder: complete, in order, and the same each time."""

import asyncio
import csv
import io
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import uuid4

import pytest

from infra.cassandra.session import Session
from infra.settings import Settings
from infra.storage import Storage
from streams.events.base import Event
from streams.events.images import ImageFailed, ImageProcessed, ImageRequested
from streams.events.requests import RequestCompleted, RequestExpired, RequestRetried
from streams.log.producer import EventLog
from streams.log.topics import Topics
from streams.projections import lag
from streams.projections.history import History, queries
from streams.projections.output_csv import OutputCsv
from streams.request.lifecycle import Lifecycle
from tests.support.examples import HEADER, NOON, completed, created, failed, output_requested, processed, requested
from tests.support.topic_reader import events_in, records_in

Result = ImageProcessed | ImageFailed
WRITES_AT_ONCE = 100


@dataclass
class Fixture:
    """All that the output CSV is made of and from."""

    settings: Settings
    request_id: str
    session: Session
    log: EventLog
    history: History
    storage: Storage
    output: OutputCsv

    async def record(self, results: Sequence[Event]) -> None:
        for start in range(0, len(results), WRITES_AT_ONCE):
            await asyncio.gather(*map(self.history.record, results[start : start + WRITES_AT_ONCE]))

    async def stored(self, run: int = 0) -> bytes | None:
        found = await self.storage.get(f"csv/{self.request_id}/{run}.csv")
        return None if found is None else b"".join([chunk async for chunk in found.chunks])

    async def completions(self) -> list[Event]:
        return await events_in(self.settings, Topics(self.settings.topic_prefix).requests, self.request_id)

    async def copies(self) -> list[Event]:
        return await events_in(self.settings, Topics(self.settings.topic_prefix).output_requests, self.request_id)


@asynccontextmanager
async def fixture(settings: Settings, request_id: str) -> AsyncIterator[Fixture]:
    session = await Session.connect(settings)
    log = EventLog(settings)
    await log.start()
    try:
        history, storage = History(session), Storage.of(settings)
        await history.record(created(request_id))
        yield Fixture(
            settings,
            request_id,
            session,
            log,
            history,
            storage,
            OutputCsv(history, storage, log, settings.data_dir / "spool"),
        )
    finally:
        await log.stop()
        await session.close()


@pytest.fixture(autouse=True)
def _short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lag, "HISTORY_TIMEOUT", 0.3)
    monkeypatch.setattr(lag, "HISTORY_POLL", 0.02)


def images_of(request_id: str, urls_per_row: Sequence[int]) -> list[ImageRequested]:
    """The images of a CSV whose n-th row has that many URLs; its cells travel with the first of them."""
    images: list[ImageRequested] = []
    for row, count in enumerate(urls_per_row):
        urls = [f"https://shop.example/{row}/{position}.jpg" for position in range(count)]
        name = f"Shoe {row}, large"
        for position, url in enumerate(urls):
            place: dict[str, Any] = {"row": row, "position": position, "serial": str(row + 1), "product_name": name}
            cells = (str(row + 1), name, ",".join(urls)) if position == 0 else None
            images.append(requested(request_id, len(images), input_url=url, cells=cells, **place))
    return images


async def test_output_has_uploaded_rows_and_output_urls(settings: Settings, request_id: str) -> None:
    async with fixture(settings, request_id) as at:
        results = [processed(image) for image in images_of(request_id, [2, 1])]
        await at.record(list(reversed(results)))
        await at.output.publish(output_requested(results))
        assert await at.stored() == (
            b"\xef\xbb\xbfS. No.,Product Name,Input Image URLs,Output Image URLs\r\n"
            b'1,"Shoe 0, large","https://shop.example/0/0.jpg,https://shop.example/0/1.jpg",'
            b'"https://cdn.example/0.jpg,https://cdn.example/1.jpg"\r\n'
            b'2,"Shoe 1, large",https://shop.example/1/0.jpg,https://cdn.example/2.jpg\r\n'
        )


async def test_failed_image_has_empty_url_and_a_reason(settings: Settings, request_id: str) -> None:
    async with fixture(settings, request_id) as at:
        a, b, c, d = images_of(request_id, [3, 1])
        results: list[Result] = [processed(a), failed(b, "too_large"), processed(c), failed(d)]
        await at.record(results)
        await at.output.publish(output_requested(results))
        text = (await at.stored() or b"").decode("utf-8-sig")
        header, *rows = csv.reader(io.StringIO(text, newline=""))
        assert header == [*HEADER, "Output Image URLs", "Errors"]
        assert [row[3] for row in rows] == ["https://cdn.example/0.jpg,,https://cdn.example/2.jpg", ""]
        assert [row[4] for row in rows] == ["image 2: too_large", "image 1: fetch_http_404"]


@pytest.mark.slow
async def test_rows_across_a_chunk_boundary_stay_whole(settings: Settings, request_id: str) -> None:
    """A row over three of the history's partitions, one that ends with a partition, and one that begins with one."""
    urls_per_row = [3, 2050, 7, 940, 5, 1]

    async with fixture(settings, request_id) as at:
        images = images_of(request_id, urls_per_row)
        assert images[2999].row == 3
        assert images[3000].row == 4
        results: list[Result] = [
            failed(image) if image.index in (999, 1500, 3005) else processed(image) for image in images
        ]
        await at.record(list(reversed(results)))
        await at.output.publish(output_requested(results))
        text = (await at.stored() or b"").decode("utf-8-sig")
        _, *rows = csv.reader(io.StringIO(text, newline=""))
        urls = iter([getattr(result, "output_url", "") for result in results])
        expected = [",".join(next(urls) for _ in range(count)) for count in urls_per_row]
        assert [row[3] for row in rows] == expected
        assert [row[:2] for row in rows] == [[str(n + 1), f"Shoe {n}, large"] for n in range(len(rows))]
        assert [len(row[2].split(",")) for row in rows] == urls_per_row
        assert [row[4] for row in rows] == [
            "", "image 997: fetch_http_404; image 1498: fetch_http_404", "", "", "", "image 1: fetch_http_404",
        ]  # fmt: skip


async def test_completion_carries_counts_and_the_output_url(settings: Settings, request_id: str) -> None:
    async with fixture(settings, request_id) as at:
        a, b = images_of(request_id, [2])
        due = output_requested([processed(a), failed(b)], webhook_url="https://r.example/", owner="shop")
        await at.record([processed(a), failed(b)])
        await at.output.publish(due)
        (event,) = await at.completions()
        assert isinstance(event, RequestCompleted)
        assert event.output_csv_url == f"http://127.0.0.1:8080/api/download/{request_id}"
        assert event.output_csv_path == f"csv/{request_id}/0.csv"
        assert event.time == due.time
        assert event.failures == {"fetch_http_404": 1}
        assert event.model_dump(exclude={"output_csv_url", "output_csv_path", "failures"}) == due.model_dump()
        assert await at.copies() == []


async def test_redelivery_makes_the_same_bytes_and_event(settings: Settings, request_id: str) -> None:
    async with fixture(settings, request_id) as at:
        a, b = images_of(request_id, [2])
        await at.record([processed(a), failed(b)])
        due = output_requested([processed(a), failed(b)])
        await at.output.publish(due)
        first = await at.stored()
        await at.output.publish(due)
        assert await at.stored() == first
        one, two = await records_in(at.settings, Topics(at.settings.topic_prefix).requests, request_id)
        assert one.value == two.value
        assert one.key == two.key == request_id.encode()
    assert list((settings.data_dir / "spool").iterdir()) == [], "nothing is left behind"


# --- gaps


@pytest.mark.slow
async def test_gap_writes_nothing_and_appends_no_copy(settings: Settings, request_id: str) -> None:
    async with fixture(settings, request_id) as at:
        results = [processed(image) for image in images_of(request_id, [2, 1])]
        await at.record([results[0], results[2]])
        due = output_requested(results)
        await at.output.publish(due)
        assert await at.stored() is None
        assert await at.completions() == []
        assert await at.copies() == []
        await at.record(results)
        await at.output.publish(due)
        assert await at.stored() is not None
        assert len(await at.completions()) == 1
        assert await at.copies() == []


@pytest.mark.slow
async def test_missing_results_are_recalled_once(settings: Settings, request_id: str) -> None:
    async with fixture(settings, request_id) as at:
        results = [processed(image) for image in images_of(request_id, [2, 1])]
        await at.record(results[:1])
        recalled: list[str] = []

        async def recall(of_request: str, since: datetime) -> None:
            recalled.append(of_request)
            await at.record(results)

        at.output._recall = recall
        await at.output.publish(output_requested(results))
        assert recalled == [request_id]
        assert len(await at.completions()) == 1
        assert await at.copies() == []


async def test_completed_run_is_not_written_again(settings: Settings, request_id: str) -> None:
    async with fixture(settings, request_id) as at:
        a, b = images_of(request_id, [2])
        await at.record([processed(a), failed(b)])
        due = output_requested([processed(a), failed(b)])
        await at.output.publish(due)
        await at.record(await at.completions())
        await at.storage.remove(f"csv/{request_id}")
        await at.output.publish(due)
        assert len(await at.completions()) == 1
        assert await at.stored() is None


async def test_output_waits_for_a_lagging_history(
    settings: Settings, request_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lag, "HISTORY_TIMEOUT", 60.0)

    async with fixture(settings, request_id) as at:
        results = [processed(image) for image in images_of(request_id, [2])]
        await at.record(results[:1])
        publishing = asyncio.create_task(at.output.publish(output_requested(results)))
        await asyncio.sleep(0.2)
        assert not publishing.done()
        assert await at.stored() is None
        await at.record(results[1:])
        async with asyncio.timeout(60):
            await publishing
        assert await at.copies() == []
        assert len(await at.completions()) == 1


@pytest.mark.slow
async def test_output_waits_while_history_makes_progress(
    settings: Settings, request_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lag, "HISTORY_TIMEOUT", 0.6)

    async with fixture(settings, request_id) as at:
        results = [processed(image) for image in images_of(request_id, [1001, 4])]
        await at.record(results[:-4])
        publishing = asyncio.create_task(at.output.publish(output_requested(results)))
        for result in results[-4:]:
            await asyncio.sleep(0.3)
            await at.record([result])
        async with asyncio.timeout(60):
            await publishing
        assert await at.copies() == []
        assert len(await at.completions()) == 1


@pytest.mark.slow
async def test_failure_of_earlier_run_is_a_gap(settings: Settings, request_id: str) -> None:
    """Even where the sums agree: the reason would be that of the first run."""

    async with fixture(settings, request_id) as at:
        first = images_of(request_id, [2])
        second = [requested(**{**image.model_dump(), "run": 1}) for image in first]
        results: list[Result] = [processed(second[0]), failed(second[1], "fetch_http_410")]
        await at.record([*(failed(image, "fetch_timeout") for image in first), results[0]])
        due = output_requested(results, run=1)
        await at.output.publish(due)
        assert await at.copies() == []
        assert await at.stored(run=1) is None
        await at.record(results)
        await at.output.publish(due)
        assert b"image 2: fetch_http_410" in (await at.stored(run=1) or b"")
        assert await at.stored(run=0) is None


@pytest.mark.slow
async def test_output_of_cancelled_and_retried_run_is_skipped(settings: Settings, request_id: str) -> None:
    """Its images are being replaced, so that its sums may never be right again."""

    async with fixture(settings, request_id) as at:
        (image,) = images_of(request_id, [1])
        again = requested(**{**image.model_dump(), "run": 1})
        await at.record([failed(image), processed(again)])
        due = output_requested([failed(image)])
        await at.output.publish(due)
        assert await at.copies() == []
        await at.record([RequestRetried(request_id=request_id, run=1, created_at=image.time)])
        await at.output.publish(due)
        assert await at.copies() == []
        assert await at.completions() == []
        await at.output.publish(output_requested([processed(again)], run=1))
        assert len(await at.completions()) == 1


async def test_success_after_completion_updates_the_output_csv(settings: Settings, request_id: str) -> None:
    async with fixture(settings, request_id) as at:
        a, b = images_of(request_id, [2])
        await at.record([processed(a), failed(b)])
        await at.output.publish(output_requested([processed(a), failed(b)]))
        await at.record(await at.completions())
        corrected = output_requested([processed(a), processed(b)])
        await at.output.publish(corrected)
        assert await at.copies() == []
        await at.record([processed(b)])
        await at.output.publish(corrected)
        assert [event.failed for event in await at.completions() if isinstance(event, RequestCompleted)] == [1, 0]
        assert b"fetch_http" not in (await at.stored() or b"fetch_http")


class _Delayed(History):
    """Something happens just before an output CSV is stored."""

    def __init__(self, at: Fixture) -> None:
        super().__init__(at.session)
        self.events: list[Event] = []
        self.reads = 0

    async def lifecycle(self, request_id: str, **options: Any) -> Lifecycle:
        self.reads += 1
        if self.reads == 2:  # the first is before the rows are read
            for event in self.events:
                await self.record(event)
        return await super().lifecycle(request_id, **options)


@pytest.mark.parametrize("later", ["correction", "retry", "expiry"])
async def test_outdated_output_csv_is_not_stored(settings: Settings, request_id: str, later: str) -> None:
    async with fixture(settings, request_id) as at:
        a, b = images_of(request_id, [2])
        await at.record([processed(a), failed(b)])
        history = _Delayed(at)
        events: dict[str, list[Event]] = {
            "correction": [completed(request_id, total=2, succeeded=2, failed=0)],
            "retry": [RequestRetried(request_id=request_id, run=1, created_at=NOON)],
            "expiry": [RequestExpired(request_id=request_id)],
        }
        history.events = events[later]
        output = OutputCsv(history, at.storage, at.log, settings.data_dir / "spool")
        await output.publish(output_requested([processed(a), failed(b)]))
        assert await at.stored() is None
        assert await at.completions() == []


async def test_output_csvs_of_a_request_are_written_in_order(settings: Settings, request_id: str) -> None:
    """The one of a late success is the one that stays, although the one before it takes longer."""
    async with fixture(settings, request_id) as at:
        a, b = images_of(request_id, [2])
        await at.record([processed(a), failed(b)])
        storing, go_on = asyncio.Event(), asyncio.Event()

        class Slow(_Delayed):
            async def lifecycle(self, request_id: str, **options: Any) -> Lifecycle:
                life = await super().lifecycle(request_id, **options)
                if self.reads == 2:
                    storing.set()
                    await go_on.wait()
                return life

        output = OutputCsv(Slow(at), at.storage, at.log, settings.data_dir / "spool")
        first = asyncio.create_task(output.publish(output_requested([processed(a), failed(b)])))
        async with asyncio.timeout(60):
            await storing.wait()
        await at.record([processed(b)])
        second = asyncio.create_task(output.publish(output_requested([processed(a), processed(b)])))
        await asyncio.wait({second}, timeout=0.3)  # without the order, it would be stored by now
        go_on.set()
        async with asyncio.timeout(60):
            await asyncio.gather(first, second)
        assert [event.failed for event in await at.completions() if isinstance(event, RequestCompleted)] == [1, 0]
        assert b"fetch_http" not in (await at.stored() or b"fetch_http")


@pytest.mark.slow
async def test_sums_that_history_contradicts_are_dropped(settings: Settings, request_id: str) -> None:
    """A success came after its image had been counted as failed: progress will count it, and ask again."""

    async with fixture(settings, request_id) as at:
        a, b = images_of(request_id, [2])
        await at.record([processed(a), failed(b), processed(b)])
        outdated = output_requested([processed(a), failed(b)])
        await at.output.publish(outdated)
        assert await at.stored() is None
        assert await at.copies() == []

        await at.output.publish(output_requested([processed(a), processed(b)]))
        (event,) = await at.completions()
        await at.record([event])
        first = await at.stored()
        await at.output.publish(outdated)
        assert await at.copies() == []
        assert await at.completions() == [event]
        assert await at.stored() == first


async def test_missing_spool_folder_is_created(settings: Settings, request_id: str) -> None:
    assert not (settings.data_dir / "spool").exists()

    async with fixture(settings, request_id) as at:
        results = [processed(image) for image in images_of(request_id, [1])]
        await at.record(results)
        await at.output.publish(output_requested(results))
        assert await at.stored() is not None


async def test_output_waits_for_the_header_of_its_request(settings: Settings, request_id: str) -> None:
    other = str(uuid4())
    async with fixture(settings, other) as at:
        at = replace(at, request_id=request_id)  # whose creation the history lacks
        results = [processed(image) for image in images_of(request_id, [1])]
        await at.record(results)
        await at.output.publish(output_requested(results))
        assert (await at.stored(), await at.completions()) == (None, [])
        await at.record([created(request_id)])
        await at.output.publish(output_requested(results))
        assert (await at.stored() or b"").startswith(b"\xef\xbb\xbfS. No.,Product Name,")


# --- bounds


@pytest.mark.slow
async def test_largest_rows_take_a_bounded_share_of_memory(
    settings: Settings, request_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows as large as an upload accepts: a few copies of a page are in memory at once, and not all rows."""
    page, rows = 512 * 1024, 150
    monkeypatch.setattr(queries, "PAGE_BYTES", page)
    cell = "\U0001f45f" * (65_000 // 4)

    async with fixture(settings, request_id) as at:
        results = [processed(requested(request_id, index, cells=(str(index), cell))) for index in range(rows)]
        await at.record(results)
        due = output_requested(results)
        del results
        tracemalloc.start()
        try:
            await at.output.publish(due)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(await at.completions()) == 1
        assert peak < 16 * page < rows * 65_000, "more than some copies of a page"
