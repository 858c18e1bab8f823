"""The output CSV: the rows of the upload, in order, with the results of their images.

It is written from the history, and never with a gap: where the history lags behind the log, it waits for it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import structlog

from infra.observability import metrics
from infra.spool import spool_file
from infra.storage import Storage
from streams.events.base import utc_now
from streams.events.requests import OutputCsvRequested, RequestCompleted
from streams.log.producer import EventLog
from streams.projections import csv_format, lag
from streams.projections.history import History
from streams.projections.lag import HistoryLagsError, Recall, with_history
from streams.request.lifecycle import Lifecycle
from streams.request.tally import chunk_count, chunk_range

logger = structlog.get_logger(__name__)


class OutputCsv:
    """Writes output CSVs and completes their requests."""

    def __init__(
        self,
        history: History,
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
        self._recall = recall
        self._history_timeout = lag.HISTORY_TIMEOUT if history_timeout is None else history_timeout

    async def publish(self, event: OutputCsvRequested) -> None:
        """Write the output CSV of a request whose images all have their result, then RequestCompleted.

        Done again, it writes the same bytes to the same key and an event of the same id. An event whose sums are not
        those of the log is dropped: either they are out of date, or progress requests the output CSV again.
        """
        if _is_superseded(event, await self._history.lifecycle(event.request_id)):
            return
        path = output_path(event)

        async def recall() -> None:
            metrics.OUTPUTS_RECALLED.inc()
            if self._recall is not None:
                await self._recall(event.request_id, event.created_at)

        try:
            await with_history(lambda: self._write(event, path), recall)
        except HistoryLagsError as gap:
            if not (await self._history.lifecycle(event.request_id)).is_past(event.run):
                logger.warning("output CSV not written", request_id=event.request_id, run=event.run, reason=str(gap))
            return
        await self._events.append(
            RequestCompleted(
                **event.model_dump(exclude={"header"}),
                time=event.time,
                output_csv_url=self._storage.link(f"api/download/{event.request_id}"),
                output_csv_path=path,
            )
        )
        seconds = max(0.0, (utc_now() - event.created_at).total_seconds())
        metrics.REQUESTS_COMPLETED.inc()
        metrics.REQUEST_SECONDS.observe(seconds)
        logger.info("request completed", **event.log_fields(), run=event.run, seconds=seconds, failed=event.failed)

    async def rewrite(self, event: OutputCsvRequested) -> None:
        """Write the output CSV again without an event. Raises HistoryLagsError."""
        await self._write(event, output_path(event))

    async def differs(self, event: OutputCsvRequested) -> bool:
        """Whether the stored output CSV differs from the history, or is missing."""
        stored = await self._storage.get(output_path(event))
        if stored is None:
            return True
        async with self._written(event) as file:
            async for chunk in stored.chunks:
                if await asyncio.to_thread(file.read, len(chunk)) != chunk:
                    return True
            return bool(await asyncio.to_thread(file.read, 1))

    async def _write(self, event: OutputCsvRequested, path: str) -> None:
        with metrics.OUTPUT_SECONDS.time():
            async with self._written(event) as file:
                await self._storage.put(path, Path(file.name), "text/csv; charset=utf-8")

    @asynccontextmanager
    async def _written(self, event: OutputCsvRequested) -> AsyncIterator[BinaryIO]:
        """The output CSV in a file of its own, from its beginning, for as long as it is needed."""
        with spool_file(self._spool, "output-") as file:
            file.write(csv_format.header(event.header, with_errors=event.failed > 0))
            failed = 0
            pending: list[Any] = []
            async for images in self._buckets(event):
                pending += images
                failed += sum(image.output_path is None for image in images)
                # A row may go on in the next bucket: its images are written when it is whole.
                last_row = pending[-1].row_number
                whole = [image for image in pending if image.row_number != last_row]
                pending = [image for image in pending if image.row_number == last_row]
                await asyncio.to_thread(file.write, _rows(whole, with_errors=event.failed > 0))
            file.write(_rows(pending, with_errors=event.failed > 0))
            file.flush()
            if failed != event.failed:
                raise HistoryLagsError(f"{failed} failed images in the history, {event.failed} in the progress table")
            file.seek(0)
            yield file

    async def _buckets(self, event: OutputCsvRequested) -> AsyncIterator[list[Any]]:
        loop = asyncio.get_running_loop()
        for bucket in range(chunk_count(event.total)):
            wanted = list(chunk_range(bucket, event.total))
            seen, deadline = -1, 0.0
            while True:
                rows = await self._history.images(event.request_id, bucket)
                images = [image for image in rows if image.image_index < event.total]
                settled = [image.image_index for image in images if _is_settled(image, event.run)]
                if settled == wanted:
                    break
                if len(settled) > seen:
                    seen, deadline = len(settled), loop.time() + self._history_timeout
                if loop.time() >= deadline:
                    missing = sorted(set(wanted) - set(settled))
                    raise HistoryLagsError(f"{len(missing)} results are missing, the first is image {missing[0]}")
                await asyncio.sleep(lag.HISTORY_POLL)
            yield images


def output_path(event: OutputCsvRequested) -> str:
    """The storage key of an output CSV; a run of a request has its own."""
    return f"csv/{event.request_id}/{event.run}.csv"


def _is_superseded(event: OutputCsvRequested, life: Lifecycle) -> bool:
    """Whether there is nothing left to do: the request expired, or its run is completed with as few failures."""
    done = life.completion
    if life.is_expired:
        return True
    return done is not None and (done.run > event.run or (done.run == event.run and done.failed <= event.failed))


def _is_settled(image: Any, run: int) -> bool:
    """Whether this is a result that counts in the run: what failed earlier was asked for again."""
    return image.output_path is not None or (image.attempt is not None and image.attempt >= run)


def _rows(images: list[Any], *, with_errors: bool) -> bytes:
    lines = []
    for _, group in groupby(images, key=lambda image: image.row_number):
        row = list(group)
        errors = [None if image.output_path else image.reason for image in row]
        lines.append(
            csv_format.row(row[0].cells or (), [image.output_url for image in row], errors if with_errors else None)
        )
    return b"".join(lines)
