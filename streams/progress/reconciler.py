"""Passes over the progress table: starts retries, reconciles stalled requests, evicts finished ones.

A completion whose webhook stays pending for longer than the whole schedule is published again: the webhook's hint may
be lost, and is written again then.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Set
from datetime import datetime, timedelta
from functools import partial
from typing import Literal

import structlog
from aiokafka import TopicPartition

from infra.observability import metrics
from infra.settings import Settings, parse_webhook_schedule
from streams.events.base import Event, utc_now, widen
from streams.events.images import ImageFailed, ImageProcessed, ImageRequested
from streams.events.progress import ImagesRerequested
from streams.events.registry import decode_or_none
from streams.log.producer import EventLog
from streams.log.reader import LogReader, Record
from streams.log.request_records import RequestRecords
from streams.progress.store import Read, decode_row, read_tallies
from streams.request.lifecycle import RequestState
from streams.request.reconcile import (
    Committed,
    Limits,
    LoggedRequest,
    LoggedResult,
    RetryDue,
    Stalled,
    counting,
    failed_again,
    given_up,
    in_run,
    next_task,
    plan,
    unknown_image,
)

logger = structlog.get_logger(__name__)

REQUESTS_PER_PASS = 20
"""Requests for which one pass reads the log."""
MAX_BACKOFF = timedelta(hours=1)
RECORDS_AT_ONCE = 200  # until other tasks of the event loop get their turn


class RebalancedError(Exception):
    """A rebalance began since the pass read the table: other workers may own its requests."""


class Reconciler:
    """Carries out the tasks of the requests in this worker's partitions."""

    def __init__(self, settings: Settings, events: EventLog) -> None:
        self._settings = settings
        self._events = events
        self._topics = events.topics
        self._limits = Limits(
            timedelta(seconds=settings.stall_after),
            settings.reconcile_rounds,
            timedelta(seconds=settings.progress_grace),
            # With room for the jitter and for a receiver that asks for a day.
            timedelta(seconds=2 * sum(parse_webhook_schedule(settings.webhook_schedule))) + timedelta(days=1),
        )
        # Cooldown per (request, run). The table lags behind the events just written, and a request whose images are
        # merely queued must not starve the others.
        self._reconciled: dict[tuple[str, int], datetime] = {}
        self._backoff = Backoff(self._limits.stall_after, max(MAX_BACKOFF, self._limits.stall_after))

    async def run_pass(self, rows: Iterable[tuple[str, bytes]], read: Read) -> None:
        """Carry out the due tasks of the requests; of those that need the log read, the rest in the next pass."""
        now = utc_now()
        self._reconciled = {key: at for key, at in self._reconciled.items() if now - at <= self._limits.stall_after}
        found: list[RetryDue | Stalled] = []
        for request_id, value in rows:
            entry = decode_row(value)
            match next_task(request_id, entry, partial(read_tallies, entry, read), now, self._limits):
                case RetryDue() | Stalled() as task:
                    if _key(task) not in self._reconciled and len(found) < REQUESTS_PER_PASS:
                        found.append(task)
                case None:
                    pass
                case event:
                    if self._backoff.is_due(event.id, now):
                        await self._events.append(event)
            await asyncio.sleep(0)
        if found:
            async with LogReader.open(self._settings) as reader:
                for task in sorted(found, key=lambda task: isinstance(task, Stalled)):  # a client waits for a retry
                    try:
                        await self._carry_out(task, reader)
                    except RebalancedError:
                        raise
                    except Exception:  # must not stop the pass for the others
                        logger.exception(
                            "reconciling request failed; retrying in a later pass", request_id=task.state.request_id
                        )

    async def _carry_out(self, task: RetryDue | Stalled, reader: LogReader) -> None:
        if isinstance(task, RetryDue):
            kept = await self._fail_again(task, reader) if task.state.retried_reason else frozenset()
            await self._rerequest(task.state, task.missing - kept, reader)  # after a kill, the same events again
            self._reconciled[_key(task)] = utc_now()
        else:
            self._reconciled[_key(task)] = utc_now()  # also after a failure, or it would starve the others
            await self._reconcile(task, reader)

    async def _fail_again(self, task: RetryDue, reader: LogReader) -> Set[int]:
        """Write the failures for other reasons than the retry's into the new run, too; returns their images."""
        state = task.state
        key = state.request_id.encode()
        partition = await reader.partition_of(self._topics.image_results, key)
        start = await reader.offset_at(partition, state.created_at)
        last: dict[int, tuple[int, int, bool]] = {}  # image → run and offset of its last failure, whether it is kept
        async for record, event in _events(reader.read({partition: start}), lambda found: found == key):
            if isinstance(event, ImageFailed) and event.index in task.missing and event.run < state.run:
                failure = (event.run, record.offset, event.reason != state.retried_reason)
                last[event.index] = max(failure, last.get(event.index, failure))
        kept = {offset for _, offset, is_kept in last.values() if is_kept}
        if not kept:
            return frozenset()
        records = reader.read({partition: min(kept)}, {partition: max(kept) + 1})
        found = _events(records, lambda found: found == key)
        await self._events.append_each(
            failed_again(event, state)
            async for record, event in found
            if record.offset in kept and isinstance(event, ImageFailed)
        )
        return {image for image, (_, _, is_kept) in last.items() if is_kept}

    async def _reconcile(self, task: Stalled, reader: LogReader) -> None:
        state = task.state
        # Read before the results: what compress has handled by now has its result among them.
        handled = await reader.committed(self._topics.group("compress"), self._topics.image_requests)
        partition = await reader.partition_of(self._topics.image_results, state.request_id.encode())
        folded = (await reader.committed(self._topics.group("progress"), partition.topic))[partition]
        start = await reader.offset_at(partition, state.created_at)
        results = [result async for result in self._results(task, {partition: start}, reader)]
        requests = []
        if task.missing - {result.image for result in results}:
            requests = [request async for request in self._requests(task, reader)]
        found = plan(task, results, requests, Committed(folded, {tp.partition: end for tp, end in handled.items()}))
        if found.republish:
            await self._republish(state, partition, found.republish, reader)
        await self._fail_unknown(state, found.unknown)
        if found.fail:
            await self._give_up(state, found.fail, reader)
        if found.rerequest:
            await self._rerequest(state, found.rerequest, reader, round_=state.rounds + 1)

    async def _results(
        self, task: Stalled, starts: Mapping[TopicPartition, int], reader: LogReader
    ) -> AsyncIterator[LoggedResult]:
        """The results on the log that count for missing images."""
        key = task.state.request_id.encode()
        async for record, event in _events(reader.read(starts), lambda found: found == key):
            if isinstance(event, ImageProcessed | ImageFailed):
                result = LoggedResult(record.offset, event.index, event.run, isinstance(event, ImageProcessed))
                for each in counting(task, (result,)):
                    yield each

    async def _requests(self, task: Stalled, reader: LogReader) -> AsyncIterator[LoggedRequest]:
        async for record, image in self._images(task.state, reader):
            if image.index in task.missing:
                yield LoggedRequest(record.partition, record.offset, image.index, image.run)

    async def _images(self, state: RequestState, reader: LogReader) -> AsyncIterator[tuple[Record, ImageRequested]]:
        """Every ImageRequested of the request, in any run."""
        records = RequestRecords(reader, state.request_id)
        await records.add_offsets(self._topics.image_requests, state.image_offsets)
        async for record, event in _events(records.read(), lambda _: True):
            if isinstance(event, ImageRequested):
                yield record, event

    async def _republish(
        self, state: RequestState, partition: TopicPartition, offsets: Set[int], reader: LogReader
    ) -> None:
        key = state.request_id.encode()
        records = reader.read({partition: min(offsets)}, {partition: max(offsets) + 1})
        found = _events(records, lambda found: found == key)
        await self._events.append_each(event async for record, event in found if record.offset in offsets)
        metrics.RESULTS_REPUBLISHED.inc(len(offsets))
        logger.warning("missed results published again", request_id=state.request_id, results=len(offsets))

    async def _rerequest(self, state: RequestState, images: Set[int], reader: LogReader, *, round_: int = 0) -> None:
        """Request images in the current run; one that was never requested before has failed.

        ``round_``: 0 for a retry, otherwise the number of the round in which the request is reconciled. A retry of all
        that has not succeeded makes earlier requests needless; a round and the retry of one reason leave out failed
        ones, which the next retry needs.
        """
        offsets = dict(state.image_offsets) if round_ or state.retried_reason else {}

        missing = set(images)
        await self._events.append_each(
            (in_run(image, state) async for image in self._each_once(state, missing, reader)),
            lambda written: widen(offsets, written.partition, written.offset, written.offset),
        )
        await self._fail_unknown(state, missing)
        count = len(images) - len(missing)
        cause: Literal["retry", "stalled"] = "stalled" if round_ else "retry"
        await self._events.append(
            ImagesRerequested(
                request_id=state.request_id,
                run=state.run,
                cause=cause,
                round=round_,
                missing=count,
                image_offsets=offsets,
                traceparent=state.traceparent,
            )
        )
        metrics.IMAGES_REREQUESTED.labels(cause).inc(count)
        metrics.REQUESTS_RECONCILED.inc(round_ > 0)
        logger.warning(
            "images re-requested", request_id=state.request_id, images=count, run=state.run, cause=cause, round=round_
        )

    async def _give_up(self, state: RequestState, images: Set[int], reader: LogReader) -> None:
        found = self._each_once(state, set(images), reader)
        await self._events.append_each(given_up(image, state) async for image in found)
        metrics.IMAGES_GIVEN_UP.inc(len(images))
        logger.error("images given up", request_id=state.request_id, images=len(images))

    async def _fail_unknown(self, state: RequestState, images: Collection[int]) -> None:
        await self._events.append_all(unknown_image(state, index) for index in sorted(images))
        if images:
            metrics.IMAGES_GIVEN_UP.inc(len(images))
            logger.error("images given up", request_id=state.request_id, images=len(images), reason="not on the log")

    async def _each_once(
        self, state: RequestState, images: set[int], reader: LogReader
    ) -> AsyncIterator[ImageRequested]:
        """The first ImageRequested of each of the images; takes them out of ``images``."""
        async for _, image in self._images(state, reader):
            if image.index in images:
                images.discard(image.index)
                yield image


class Backoff:
    """Exponential backoff of events that are published until they have their effect: their consumer may be away."""

    def __init__(self, first: timedelta, maximum: timedelta) -> None:
        self._first = first
        self._maximum = maximum
        self._next: dict[str, tuple[datetime, timedelta]] = {}  # id → when it is due again, and the pause after that

    def __len__(self) -> int:
        return len(self._next)

    def is_due(self, event_id: str, now: datetime) -> bool:
        """Whether the event is to be published now; if so, the pause until the next time begins."""
        self._forget(now)
        at, pause = self._next.get(event_id, (now, self._first))
        if now < at:
            return False
        self._next.pop(event_id, None)  # to the end: they are in about the order of their times
        self._next[event_id] = (now + pause, min(2 * pause, self._maximum))
        return True

    def _forget(self, now: datetime) -> None:
        """Forget the events that weren't due again: they had their effect."""
        while self._next and now - (oldest := next(iter(self._next.items())))[1][0] > self._maximum:
            del self._next[oldest[0]]


def _key(task: RetryDue | Stalled) -> tuple[str, int]:
    return task.state.request_id, task.state.run


async def _events(
    batches: AsyncIterator[list[Record]], is_wanted: Callable[[bytes], bool]
) -> AsyncIterator[tuple[Record, Event]]:
    """The events of the records with a wanted key; those that can't be decoded are dead letters already."""
    async for records in batches:
        for number, record in enumerate(records):
            if record.key is not None and is_wanted(record.key):
                event = decode_or_none(record.value)
                if event is not None:
                    yield record, event
            if number % RECORDS_AT_ONCE == 0:
                await asyncio.sleep(0)
