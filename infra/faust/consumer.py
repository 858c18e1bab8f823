"""F1, F2, F4: delivers every event from the committed offset on, and commits exactly the finished events."""

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from time import monotonic
from typing import Any, cast

from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, Message
from faust.types.transports import TPorTopicSet
from faust.types.tuples import ack_lock
from mode import ServiceT
from mode.utils.futures import notify

from infra.cancellation import StrayCancellationError, no_stray_cancellation
from infra.errors import end_process
from infra.faust.offsets import PartitionOffsets
from infra.faust.worker_app import STOP_DRAIN, WorkerApp

logger = logging.getLogger(__name__)

REVOKE_DRAIN = 10.0
"""Drain deadline (s) of a rebalance: a longer one would stall the whole group for one slow image."""

FULL_WINDOW_POLL = 0.02
"""Poll interval (s) while a partition's in-flight window is full."""

MIN_POLL_RECORDS = 64
"""Minimum free capacity of a large window before its partition is polled again: smaller polls cost one call per few
records."""

LARGE_WINDOW = 4 * MIN_POLL_RECORDS
"""Records in flight per partition from which a window is large; compress has smaller ones, and is polled record by
record."""

LARGE_WINDOW_POLL = 0.1
"""`FULL_WINDOW_POLL` of large windows: they take that long to drain."""

MAX_RECORD_BYTES = 64 * 1024
"""Assumed size (bytes) of the next records when a window in bytes is polled: the largest that an upload makes."""

EVENT_OVERHEAD = 8 * 1024
"""Memory (bytes) of a waiting event in addition to its value: its task, frames and Faust's objects."""

MAX_SPAN = 10_000
"""Maximum distance between the committed offset and the last one delivered, per partition of a window in bytes: it
bounds the redeliveries after a restart."""

STALL_FACTOR = 3
"""Multiple of an event's maximum duration after which its worker counts as stalled."""


class GuardedConsumerThread(driver.AIOKafkaConsumerThread):
    """F2: bounded LeaveGroup on shutdown. Polls at most the free in-flight capacity of each partition."""

    async def on_start(self) -> None:
        """Z1: the answers to heartbeats renew the lease of an app with tables, or end it."""
        await super().on_start()
        app = cast("WorkerApp", self.app)
        if app.tables.changelog_topics:
            coordinator = self._ensure_consumer()._coordinator
            coordinator._send_req = app.lease.observing(coordinator._send_req)

    @property
    def _assignor(self) -> Any:
        """Trap: Faust assigns round robin over all topics of an app without tables: with most numbers of workers, the
        same partition of two topics goes to different ones. Range assignment co-partitions them."""
        return self.app.assignor if self.app.tables.changelog_topics else RangePartitionAssignor

    @_assignor.setter
    def _assignor(self, _: Any) -> None:
        """Faust's choice is ignored."""

    async def _fetch_records(
        self,
        consumer: Any,
        active_partitions: Any,
        timeout: float | None = None,
        max_records: int | None = None,
    ) -> Any:
        """If ``active_partitions`` is a mapping, it has the maximum number of records of each partition.

        aiokafka empties the buffer of one partition, thousands of records, before it serves the next.
        """
        if not isinstance(active_partitions, Mapping):
            return await super()._fetch_records(consumer, active_partitions, timeout, max_records)
        if (least := min(active_partitions.values())) >= MIN_POLL_RECORDS:  # one call is enough
            return await super()._fetch_records(consumer, set(active_partitions), timeout, least)
        records: dict[Any, Any] = {}
        for tp, capacity in active_partitions.items():
            records |= await super()._fetch_records(consumer, {tp}, 0, capacity)
        if not records:
            return await super()._fetch_records(consumer, set(active_partitions), timeout, 1)
        return records

    async def end_offsets(self, partitions: Iterable[TP]) -> Mapping[TP, int]:
        """End offset of each partition, queried from the brokers."""
        return await self._bypass_queue(self._ensure_consumer().end_offsets(list(partitions)))

    async def beginning_offsets(self, partitions: Iterable[TP]) -> Mapping[TP, int]:
        """Offset of the first retained record of each partition, queried from the brokers."""
        return await self._bypass_queue(self._ensure_consumer().beginning_offsets(list(partitions)))

    async def _bypass_queue(self, query: Coroutine[Any, Any, Mapping[TP, int]]) -> Mapping[TP, int]:
        """Trap: Faust runs two of its own calls at a time, so a query without an answer would block the commits."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(query, self.thread_loop))

    async def on_thread_stop(self) -> None:
        """Trap: aiokafka first finishes JoinGroup, which after a kill -9 takes a session timeout."""
        app = cast("WorkerApp", self.app)
        try:
            async with asyncio.timeout(app.drain_seconds + 1.5):
                await super().on_thread_stop()
        except TimeoutError:
            logger.warning("stopped during JoinGroup, without LeaveGroup")


class GuardedConsumer(driver.Consumer):
    """F1, F2, F4: delivers every event from the committed offset on, and commits exactly the finished ones."""

    app: WorkerApp
    _thread: GuardedConsumerThread

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._offsets: dict[TP, PartitionOffsets] = {}
        self._epoch = 0  # fence: incremented at each stop of the flow; records of an older epoch are not delivered
        self._fetch_ended = asyncio.Event()
        self._fetch_ended.set()

    def _new_consumer_thread(self) -> GuardedConsumerThread:
        return GuardedConsumerThread(self, loop=self.loop, beacon=self.beacon)

    # Queries of the monitor

    @property
    def is_connected(self) -> bool:
        consumer = self._thread._consumer
        return consumer is not None and consumer._fetcher is not None  # aiokafka's start sets it

    @property
    def unfinished(self) -> int:
        """Number of in-flight events: delivered and not finished."""
        return sum(offsets.unfinished for offsets in self._offsets.values())

    def first_unfinished(self, tp: TP) -> int | None:
        offsets = self._offsets.get(tp)
        return None if offsets is None else offsets.first_unfinished

    def overdue(self) -> str | None:
        """Topic, partition and offset of a stalled event: in flight for `STALL_FACTOR` times its maximum duration."""
        now = monotonic()
        for tp, offsets in self._offsets.items():
            if (offset := offsets.overdue(now)) is not None:
                return f"{tp.topic}/{tp.partition} offset {offset}"
        return None

    def note_start(self, message: Message, max_seconds: float) -> None:
        """An agent has begun an event that may take ``max_seconds`` seconds."""
        if (offsets := self._offsets.get(message.tp)) is not None:
            offsets.start(message.offset, monotonic() + STALL_FACTOR * max_seconds)

    async def end_offsets(self, partitions: Iterable[TP]) -> Mapping[TP, int]:
        return await self._thread.end_offsets(partitions)

    async def beginning_offsets(self, partitions: Iterable[TP]) -> Mapping[TP, int]:
        return await self._thread.beginning_offsets(partitions)

    # F1: fetching and seeking

    async def _drain_messages(self, fetcher: ServiceT) -> None:
        """F1: fetch and deliver so that a seek never skips an event.

        Trap: Faust seeks back to the committed offset while a fetch may be in flight or half delivered
        (transport/consumer.py ``getmany``, ``_wait_next_records``, ``_drain_messages``). Records of the old
        position then arrive after the seek; the records before them are taken for a compacted gap, committed past,
        and dropped as already read on arrival. Also, a fetch shares its set of partitions
        with the thread that runs it: partitions resumed meanwhile are fetched too, and an emptied set means
        all; records of inactive partitions are dropped. Upstream: faust-streaming/faust #596, #216.

        Guard: each fetch has its own copy of the set, seeks wait until no fetch is in flight, and the rest of a
        batch is not delivered once the flow has stopped; a stop is always followed by a seek.
        """
        stopped: tuple[type[BaseException], ...] = (*self.consumer_stopped_errors, asyncio.CancelledError)
        try:
            with no_stray_cancellation():
                await self._fetch_and_deliver(fetcher)
        except StrayCancellationError as error:
            if not self.app.should_stop:
                end_process(f"{self.app.conf.id} stopped fetching: {error}", error=error)
        except stopped:
            if not self.app.should_stop:
                raise

    async def _fetch_and_deliver(self, fetcher: ServiceT) -> None:
        while not (self.should_stop or fetcher.should_stop):
            if not self.flow_active:
                await self.wait(self.can_resume_flow.wait())
                continue
            active = set(self._get_active_partitions())
            partitions = self._partitions_to_poll(active)
            poll_interval = FULL_WINDOW_POLL if self._window_of_each(active) < LARGE_WINDOW else LARGE_WINDOW_POLL
            if not partitions:  # paused, or all windows are full
                await self.sleep(poll_interval if active else 0.05)
                continue
            # A full window may drain before the other partitions have a new record.
            timeout = 1.0 if len(partitions) == len(active) else poll_interval
            await self._deliver(*await self._fetch(partitions, timeout))

    def _partitions_to_poll(self, active: set[TP]) -> Any:
        """Backpressure: the partitions to poll; with a window, each one's free in-flight capacity in records.

        The delivery window is divided evenly among the partitions, so a slow partition takes no capacity from the
        others. No event waits in a queue, and an urgent one starts as soon as it arrives.
        """
        if self.app.read_ahead is not None and active:
            share = self.app.read_ahead // len(active)
            free_bytes = {tp: share - self._offsets_of(tp).unfinished_bytes for tp in active}
            return {
                tp: max(1, size // (MAX_RECORD_BYTES + EVENT_OVERHEAD))
                for tp, size in free_bytes.items()
                if size > 0 and self._offsets_of(tp).span < MAX_SPAN
            }
        if self.app.delivery_window is None or not active:
            return active
        window = self._window_of_each(active)
        least = MIN_POLL_RECORDS if window >= LARGE_WINDOW else 1
        free = {tp: window - self._offsets_of(tp).unfinished for tp in active}
        return {tp: capacity for tp, capacity in free.items() if capacity >= least}

    def _window_of_each(self, active: set[TP]) -> int:
        """In-flight window of one partition, in records."""
        return max(1, (self.app.delivery_window or 0) // max(1, len(active)))

    async def _fetch(self, partitions: Any, timeout: float) -> tuple[Mapping[TP, list[Any]], int]:
        """Fetched records, and the epoch in which they may be delivered."""
        epoch = self._epoch
        self._fetch_ended.clear()
        try:
            return await self._getmany(partitions, timeout=timeout), epoch
        finally:
            self._fetch_ended.set()

    async def _deliver(self, records: Mapping[TP, list[Any]], epoch: int) -> None:
        if epoch == self._epoch:
            for tp in records:
                self.app.monitor.track_tp_end_offset(tp, self.highwater(tp))
        suspended = asyncio.ensure_future(self.suspend_flow.wait())
        try:
            for tp, record in self.scheduler.iterate(records):
                is_input = self.app.topics.acks_enabled_for(tp.topic)  # else a changelog: recovery seeks by itself
                if epoch != self._epoch:
                    if is_input:
                        self._offsets_of(tp).drop(record.offset)
                    continue
                if is_input:
                    self._note_delivery(tp, record.offset, len(record.value or b"") + EVENT_OVERHEAD)
                delivery = asyncio.ensure_future(self.callback(self._to_message(tp, record)))
                await asyncio.wait({delivery, suspended}, return_when=asyncio.FIRST_COMPLETED)
                if delivery.done():
                    delivery.result()
                else:
                    delivery.cancel()
                    if is_input:
                        self._offsets_of(tp).drop(record.offset)
        finally:
            suspended.cancel()

    def _offsets_of(self, tp: TP) -> PartitionOffsets:
        return self._offsets.setdefault(tp, PartitionOffsets())

    def _note_delivery(self, tp: TP, offset: int, size: int) -> None:
        offsets = self._offsets_of(tp)
        if offsets.dropped is not None:
            end_process(f"{tp.topic}/{tp.partition}: offset {offset} is delivered after {offsets.dropped} was dropped")
        offsets.deliver(offset, size)

    def note_dropped(self, message: Message) -> None:
        """A delivered message will not reach an agent: no later one may be delivered before a seek back."""
        offsets = self._offsets.get(message.tp)
        if offsets is not None and offsets.is_unfinished(message.offset):
            offsets.drop(message.offset)

    def stop_flow(self) -> None:
        self._epoch += 1
        super().stop_flow()

    async def perform_seek(self) -> None:
        """F1: seek to the committed offsets while the flow is stopped, also in partitions without one.

        Trap: at the end of a table's recovery, input partitions resume, then Faust seeks back, then it clears the
        queues (tables/recovery.py ``on_recovery_completed``): an event delivered in between is lost. And aiokafka's
        ``seek_to_committed`` doesn't seek in a partition whose committed offset is missing or 0: a record that was
        fetched from it and discarded is never redelivered. Upstream: faust-streaming/faust #596.

        Guard: the flow stops here (recovery resumes it after clearing), and those partitions are read from their
        beginning.
        """
        self.stop_flow()
        await self._fetch_ended.wait()
        committed = await self.seek_to_committed()
        inputs = {tp: offset or None for tp, offset in committed.items() if not self._is_changelog_tp(tp)}
        if unset := [tp for tp, offset in inputs.items() if offset is None]:
            await self._thread.seek_to_beginning(*unset)
        self._offsets.update({tp: PartitionOffsets(offset) for tp, offset in inputs.items()})

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        await self._fetch_ended.wait()
        await super().seek_wait(partitions)

    # F4: acknowledgements and commits

    def ack(self, message: Message) -> bool:
        """F4: mark an event as finished, unless no agent has got it.

        Trap: a stream acknowledges an event that it skips because of a rebalance (streams.py ``_py_aiter``) as if it
        had been processed. Only an event that an agent has got is ``tracked``.
        """
        with ack_lock:
            if message.acked:
                return False
            message.acked = True
            self._unacked_messages.discard(message)
            if not message.tracked:
                self.note_dropped(message)
                return False
            if (offsets := self._offsets.get(message.tp)) is not None:
                offsets.finish(message.offset)
            notify(self._waiting_for_ack)
            return True

    def _filter_tps_with_pending_acks(self, topics: TPorTopicSet | None = None) -> Iterator[TP]:
        return (tp for tp in list(self._offsets) if topics is None or tp in topics or tp.topic in topics)

    def _new_offset(self, tp: TP) -> int | None:
        """F4: never past an unfinished event.

        Trap: with several events in flight, Faust takes an unfinished one just behind the committed offset for a
        compacted gap, and commits past it (transport/consumer.py ``_new_offset``).
        Upstream: faust-streaming/faust #606, #312, pull request #707.
        """
        return self._offsets[tp].committable()

    def _should_commit(self, tp: TP, offset: int) -> bool:
        return True  # _new_offset has compared already

    async def _commit_offsets(self, offsets: Mapping[TP, int], start_new_transaction: bool = True) -> bool:
        """Record offsets as committed only if the commit succeeded: Faust also does if it failed (#316)."""
        did_commit = await super()._commit_offsets(offsets, start_new_transaction)
        if did_commit:
            for tp, offset in offsets.items():
                if tp in self._offsets:
                    self._offsets[tp].committed = offset
        return did_commit

    # F2: rebalance and stop

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """F2: drain and commit the in-flight events before their offsets are forgotten.

        Trap: Faust forgets which offsets are finished, and then waits for the streams and commits nothing
        (transport/consumer.py ``on_partitions_revoked``): every rebalance redelivers a commit interval.
        """
        self.app.lease.term += 1
        if assignment := self.assignment():
            self.stop_flow()
            self.app.flow_control.suspend()
            self.pause_partitions(assignment)
            self.app.flow_control.clear()
            await self.wait_empty()
        for tp in revoked:
            self._offsets.pop(tp, None)
        await super().on_partitions_revoked(revoked)

    async def wait_empty(self) -> None:
        """Drain the in-flight events, with a deadline, and commit the finished ones.

        Events that wait to be admitted are given up: the next owner gets them. Faust's own version has no deadline. An
        event that outlasts it stays uncommitted; after a rebalance its late
        acknowledgement is ignored. In an app with tables it would run as a zombie, and could overwrite a write of the
        partition's next owner, so there the process ends.
        """
        for message, task in self.app.waiting.items():
            task.cancel()
            self._unacked_messages.discard(message)
        self.app.waiting.clear()
        deadline = monotonic() + (STOP_DRAIN if self.app.should_stop else REVOKE_DRAIN)
        while self._unacked_messages and monotonic() < deadline:
            await self._wait_for_ack(timeout=1)
        if unfinished := len(self._unacked_messages):
            logger.warning("drain timed out: %d events are unfinished and will be redelivered", unfinished)
            if self.app.tables.changelog_topics and not self.app.should_stop:
                end_process("an event outlasted a rebalance and could write to a table partition that has a new owner")
        try:
            async with asyncio.timeout(REVOKE_DRAIN):
                await self.maybe_wait_for_commit_to_finish()  # a commit may have begun before the last event finished
                await self.commit_and_end_transactions()
        except TimeoutError:
            logger.warning("offset commit timed out: events since the last commit will be redelivered")
        self._unacked_messages.clear()
