"""The output CSV: the rows of the upload, in order, with the results of their images.

It is written from the history, and never with a gap: where the history lags behind the log, it waits for it.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO
from weakref import WeakValueDictionary

import structlog

from infra.observability import metrics
from infra.spool import spool_file
from infra.storage import Storage
from streams.events.base import utc_now
from streams.events.requests import OutputCsvRequested, RequestCompleted
from streams.log.producer import EventLog
from streams.projections import csv_format, lag
from streams.projections.history.queries import HistoryQueries, StoredImage
from streams.projections.lag import HistoryLagsError, Recall, with_history
from streams.request.failures import is_reason
from streams.request.lifecycle import Lifecycle
from streams.request.tally import chunk_count, chunk_range

logger = structlog.get_logger(__name__)


class OutputCsv:
    """Writes output CSVs and completes their requests."""

    def __init__(
        self,
        history: HistoryQueries,
        storage: Storage,
        event_log: EventLog,
        spool: Path,
        history_timeout: float | None = None,
        recall: Recall | None = None,
    ) -> None:
        self._history = history
        self._storage = storage
        self._events = event_log
        self._spool = spool
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._recall = recall
        self._history_timeout = lag.HISTORY_TIMEOUT if history_timeout is None else history_timeout

    async def publish(self, event: OutputCsvRequested) -> None:
        """Write the output CSV of a request whose images all have their result, then RequestCompleted.

        Done again, it writes the same bytes to the same key and an event of the same id. An event whose sums are not
        those of the log is dropped: either they are out of date, or progress requests the output CSV again. The output
        CSVs of a request are written one after the other, in the order of their events.
        """
        lock = self._locks.setdefault(event.request_id, asyncio.Lock())  # the entry lives as long as its users
        async with lock:
            await self._publish(event)

    async def _publish(self, event: OutputCsvRequested) -> None:
        if _is_superseded(event, await self._history.lifecycle(event.request_id)):
            return
        path = output_path(event)

        async def recall() -> None:
            metrics.OUTPUTS_RECALLED.inc()
            if self._recall is not None:
                await self._recall(event.request_id, event.created_at)

        try:
            failures = await with_history(lambda: self._write(event, path), recall)
        except HistoryLagsError as gap:
            if not (await self._history.lifecycle(event.request_id)).is_past(event.run):
                logger.warning("output CSV not written", request_id=event.request_id, run=event.run, reason=str(gap))
            return
        if failures is None:
            return
        await self._events.append(
            RequestCompleted(
                **event.model_dump(),
                time=event.time,
                output_csv_url=self._storage.link(f"api/download/{event.request_id}"),
                output_csv_path=path,
                failures=failures,
            )
        )
        seconds = max(0.0, (utc_now() - event.created_at).total_seconds())
        metrics.REQUESTS_COMPLETED.inc()
        metrics.REQUEST_SECONDS.observe(seconds)
        logger.info("request completed", **event.log_fields(), run=event.run, seconds=seconds, failed=event.failed)

    async def rewrite(self, event: OutputCsvRequested) -> None:
        """Write the output CSV again without an event. Raises HistoryLagsError."""
        async with self._written(event) as (file, _):
            await self._put(file, output_path(event))

    async def differs(self, event: OutputCsvRequested) -> bool:
        """Whether the stored output CSV differs from the history, or is missing."""
        stored = await self._storage.get(output_path(event))
        if stored is None:
            return True
        async with self._written(event) as (file, _):
            async for chunk in stored.chunks:
                if await asyncio.to_thread(file.read, len(chunk)) != chunk:
                    return True
            return bool(await asyncio.to_thread(file.read, 1))

    async def _write(self, event: OutputCsvRequested, path: str) -> dict[str, int] | None:
        """Write the output CSV; returns the failed images by reason, None if it is outdated by now and not stored."""
        with metrics.OUTPUT_SECONDS.time():
            async with self._written(event) as (file, failures):
                if _is_superseded(event, await self._history.lifecycle(event.request_id)):
                    logger.info("outdated output CSV dropped", request_id=event.request_id, failed=event.failed)
                    return None
                await self._put(file, path)
                return failures

    async def _put(self, file: BinaryIO, path: str) -> None:
        await self._storage.put(path, Path(file.name), "text/csv; charset=utf-8")

    @asynccontextmanager
    async def _written(self, event: OutputCsvRequested) -> AsyncIterator[tuple[BinaryIO, dict[str, int]]]:
        """The output CSV in a temporary file, positioned at its start, and its failed images by reason."""
        with spool_file(self._spool, "output-") as file:
            file.write(csv_format.header(await self._header(event), with_errors=event.failed > 0))
            failures: Counter[str] = Counter()
            pending: list[Any] = []
            async for images in self._pages(event):
                pending += images
                failures.update(_reason(image) for image in images if image.output_path is None)
                # A row may continue on the next page: it is written when it is complete.
                last_row = pending[-1].row_number
                complete = [image for image in pending if image.row_number != last_row]
                pending = [image for image in pending if image.row_number == last_row]
                await asyncio.to_thread(file.write, _rows(complete, with_errors=event.failed > 0))
            file.write(_rows(pending, with_errors=event.failed > 0))
            file.flush()
            if (failed := failures.total()) != event.failed:
                raise HistoryLagsError(f"{failed} failed images in the history, {event.failed} in the progress table")
            file.seek(0)
            yield file, dict(sorted(failures.items()))

    async def _header(self, event: OutputCsvRequested) -> tuple[str, ...]:
        """The header cells of the upload; waits until the history has the request. Raises HistoryLagsError."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._history_timeout
        while (header := await self._history.header(event.request_id)) is None:
            if loop.time() >= deadline:
                raise HistoryLagsError("the creation of the request is missing")
            await asyncio.sleep(lag.HISTORY_POLL)
        return header

    async def _pages(self, event: OutputCsvRequested) -> AsyncIterator[list[Any]]:
        """The rows of all images in order, each page within the bound of the history."""
        for bucket in range(chunk_count(event.total)):
            stored = await self._settled(event, bucket)
            async for rows in self._history.images(event.request_id, bucket, stored):
                yield rows

    async def _settled(self, event: OutputCsvRequested, bucket: int) -> list[StoredImage]:
        """The images of a bucket once all have a result; waits while results arrive. Raises HistoryLagsError."""
        loop = asyncio.get_running_loop()
        wanted = chunk_range(bucket, event.total)
        seen, deadline = -1, 0.0
        while True:
            stored = await self._history.stored_images(event.request_id, bucket)
            settled = [image for image in stored if image.image_index < event.total and _is_settled(image, event.run)]
            if len(settled) == len(wanted):
                return settled
            if len(settled) > seen:
                seen, deadline = len(settled), loop.time() + self._history_timeout
            if loop.time() >= deadline:
                missing = sorted(set(wanted) - {image.image_index for image in settled})
                raise HistoryLagsError(f"{len(missing)} results are missing, the first is image {missing[0]}")
            await asyncio.sleep(lag.HISTORY_POLL)


def output_path(event: OutputCsvRequested) -> str:
    """The storage key of an output CSV; a run of a request has its own."""
    return f"csv/{event.request_id}/{event.run}.csv"


def _is_superseded(event: OutputCsvRequested, life: Lifecycle) -> bool:
    """Whether nothing is left to do: the request expired or was retried, or the run is completed as well or better."""
    done = life.completion
    if life.is_expired or life.retried_run > event.run:
        return True
    return done is not None and (done.run > event.run or (done.run == event.run and done.failed <= event.failed))


def _is_settled(image: StoredImage, run: int) -> bool:
    """Whether this result counts in the run: an image that failed in an earlier run was requested again."""
    return image.output_path is not None or (image.run is not None and image.run >= run)


def _reason(image: Any) -> str:
    """The reason of a failed image; one of a later version is `other`, which bounds their number."""
    return image.reason if image.reason is not None and is_reason(image.reason) else "other"


def _rows(images: list[Any], *, with_errors: bool) -> bytes:
    lines = []
    for _, group in groupby(images, key=lambda image: image.row_number):
        row = list(group)
        errors = [None if image.output_path else image.reason for image in row]
        lines.append(
            csv_format.row(row[0].cells or (), [image.output_url for image in row], errors if with_errors else None)
        )
    return b"".join(lines)
