"""Guards that make Faust deliver at least once; the only module that depends on Faust's internals.

Faust as published loses and repeats events in ways that its documentation does not mention. Each class here
replaces one of its parts; the docstring names the trap, its place in Faust's source and the upstream issue. For
each numbered trap, F1 to F6 and F9, a test with a real broker (``tests/integration/faust_guards``) fails without the
guard. Together they guarantee:

* an offset is committed only when every event before it is finished and all writes of these are acknowledged;
* an unrecoverable fault (an exception that leaves an agent, a write that the brokers refuse, an event that
  Faust itself drops) ends the process at once with exit code 70; the event is redelivered;
* a clean stop and a rebalance drain the in-flight events, with a deadline, and commit what is finished.

The guards reach into Faust's internals, so its version is pinned and checked. The app carries them with it:
``faust -A streams.compress worker`` is as safe as ``run_worker``.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import aclosing
from functools import cache
from time import monotonic
from typing import Any, ClassVar, cast

import faust
from faust.app.base import BootStrategy
from faust.auth import SASLCredentials, SSLCredentials
from faust.streams import Stream
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery, ServiceStopped
from faust.transport.drivers import aiokafka as driver
from faust.transport.producer import ProducerBuffer
from faust.types import TP, EventT, Message, StreamT
from faust.types.auth import CredentialsT
from faust.types.transports import ProducerT, TPorTopicSet
from faust.types.tuples import FutureMessage, ack_lock
from mode import Seconds, ServiceT
from mode.services import WaitArgT
from mode.utils.futures import notify
from mode.utils.objects import cached_property
from mode.utils.queues import FlowControlEvent

from infra import kafka
from infra.cancellation import StrayCancellationError, no_stray_cancellation
from infra.errors import EXIT_UNAVAILABLE, end_process
from infra.faust.monitor import WorkerMonitor
from infra.observability import metrics
from infra.observability.metrics import Role
from infra.observability.probes import ProbesError
from infra.settings import Settings

GUARDED_VERSION = "0.15.3"

SESSION_TIMEOUT = 10.0
"""Session timeout (s): a killed worker's partitions are reassigned after it (brokers refuse less than 6)."""
REVOKE_DRAIN = 10.0
"""Drain deadline (s) of a rebalance: a longer one would stall the whole group for one slow image."""
REBALANCE_TIMEOUT = 60.0
"""Rebalance timeout (s): a member must revoke its partitions within it; several times ``REVOKE_DRAIN``."""
STOP_DRAIN = 6.0
"""Drain deadline (s) of a clean stop; leaving the group and Faust's own shutdown follow."""
STOP_LIMIT = 10.0
"""Seconds after which a hanging stop ends the process: docker's grace period before SIGKILL."""
PUBLISH_TIMEOUT = 30.0
"""Seconds within which the brokers must acknowledge a changelog write."""
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
UNACKNOWLEDGED_LIMIT = 1000
"""Unacknowledged changelog writes at which backpressure stops the delivery of events."""
STALL_FACTOR = 3
"""Multiple of an event's maximum duration after which its worker counts as stalled."""

FIXED: Mapping[str, Any] = {
    "processing_guarantee": "at_least_once",  # exactly_once crashes without tables, and doubles what it counts
    "stream_wait_empty": True,  # False commits an unfinished event at SIGTERM
    "topic_allow_declare": False,  # `init` creates all topics: Faust's would have other partition counts
    "topic_disable_leader": True,  # no leader topic: nothing here runs on one worker only
    "web_enabled": False,  # its server listens on 0.0.0.0 and shows the tables
    "consumer_auto_offset_reset": "earliest",  # a new group begins with the first event
    "producer_acks": -1,  # every in-sync replica has a changelog write before its event is committed
    "producer_threaded": False,  # its buffer is not part of flush()
    "table_standby_replicas": 0,  # Faust doesn't use a standby of a memory table at failover
    "key_serializer": "raw",  # topics carry bytes; agents decode, and dead-letter poison pills
    "value_serializer": "raw",
}

logger = logging.getLogger(__name__)
_produced_to = cache(metrics.PRODUCED.labels)


class PartitionOffsets:
    """Offset tracker of one partition: which offset may be committed, given the delivered and the finished ones."""

    __slots__ = ("_deadlines", "_unfinished", "committed", "dropped", "position")

    def __init__(self, committed: int | None = None) -> None:
        self.committed = committed
        self.position = committed  # the offset after the last one delivered
        self.dropped: int | None = None  # the first offset that was fetched and then discarded
        self._unfinished: set[int] = set()
        self._deadlines: dict[int, float] = {}

    def deliver(self, offset: int) -> None:
        if self.committed is None:
            self.committed = offset  # a restart would begin here
        self._unfinished.add(offset)
        self.position = offset + 1

    def start(self, offset: int, deadline: float) -> None:
        """An agent has begun the event; if a topic has several agents, the latest ``deadline`` counts."""
        if offset in self._unfinished:
            self._deadlines[offset] = max(deadline, self._deadlines.get(offset, deadline))

    def finish(self, offset: int) -> None:
        """Ignores an offset that was not delivered since the last seek: it will be redelivered."""
        self._unfinished.discard(offset)
        self._deadlines.pop(offset, None)

    def overdue(self, now: float) -> int | None:
        """The lowest offset whose deadline has passed, if any."""
        return min((offset for offset, deadline in self._deadlines.items() if deadline <= now), default=None)

    def drop(self, offset: int) -> None:
        """The offset was fetched, but no agent gets it unless a seek goes back."""
        self.dropped = offset if self.dropped is None else min(offset, self.dropped)

    @property
    def unfinished(self) -> int:
        return len(self._unfinished)

    def is_unfinished(self, offset: int) -> bool:
        return offset in self._unfinished

    @property
    def first_unfinished(self) -> int | None:
        """The offset at which a restart must begin; None: the first record."""
        return min(self._unfinished, default=self.position)

    def committable(self) -> int | None:
        """The offset to commit, if it is beyond the committed one.

        Offsets that were never delivered (compacted away, transaction markers) don't matter: the next
        unfinished one, or the position, is right whatever lies between.
        """
        offset = self.first_unfinished
        if offset is None or (self.committed is not None and offset <= self.committed):
            return None
        return offset


class GuardedConsumerThread(driver.AIOKafkaConsumerThread):
    """F2: bounded LeaveGroup on shutdown. Polls at most the free in-flight capacity of each partition."""

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
        app = cast("GuardedApp", self.app)
        try:
            await asyncio.wait_for(super().on_thread_stop(), app.drain_seconds + 1.5)
        except TimeoutError:
            logger.warning("stopped during JoinGroup, without LeaveGroup")


class GuardedConsumer(driver.Consumer):
    """F1, F2, F4: delivers every event from the committed offset on, and commits exactly the finished ones."""

    app: "GuardedApp"
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
        return self._thread._consumer is not None

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

    def note_start(self, message: Message, longest: float) -> None:
        """An agent has begun an event that may take ``longest`` seconds."""
        if (offsets := self._offsets.get(message.tp)) is not None:
            offsets.start(message.offset, monotonic() + STALL_FACTOR * longest)

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
        """Backpressure: the partitions to poll; with a delivery window, each one's free in-flight capacity.

        The delivery window is divided evenly among the partitions, so a slow partition takes no capacity from the
        others. No event waits in a queue, and an urgent one starts as soon as it arrives.
        """
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
                    self._note_delivery(tp, record.offset)
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

    def _note_delivery(self, tp: TP, offset: int) -> None:
        offsets = self._offsets_of(tp)
        if offsets.dropped is not None:
            end_process(f"{tp.topic}/{tp.partition}: offset {offset} is delivered after {offsets.dropped} was dropped")
        offsets.deliver(offset)

    def note_dropped(self, message: Message) -> None:
        """A delivered message will reach no agent: nothing behind it may be delivered before a seek back."""
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

        Faust's own version has no deadline. An event that outlasts it stays uncommitted; after a rebalance its late
        acknowledgement is ignored. In an app with tables it would run as a zombie, and could overwrite a write of the
        partition's next owner, so there the process ends.
        """
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


class GuardedFlowControl(FlowControlEvent):
    """F1: records the events that are discarded from the queues.

    Trap: ``resume()`` clears the queues of all streams (mode/utils/queues.py), including events delivered since
    the seek. Guard: they are marked as dropped, and a delivery past a dropped event ends the process.
    """

    def __init__(self, app: "GuardedApp") -> None:
        super().__init__(loop=app.loop)
        self._app = app

    def clear(self) -> None:
        for queue in self._queues:
            for item in queue._queue:  # type: ignore[attr-defined]  # asyncio.Queue's deque
                if isinstance(item, EventT):
                    self._app.consumer.note_dropped(item.message)
        super().clear()


class GuardedBuffer(ProducerBuffer):
    """F6: ``flush()`` returns when the brokers have acknowledged every write.

    Trap: Faust's version gives up when no message leaves the buffer for 0.1 s, and overlooks the one that has just
    left (transport/producer.py ``flush_atmost``): an event is committed whose changelog writes may yet be
    lost. Upstream: faust-streaming/faust pull request #273 relies on it.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._unacknowledged: set[FutureMessage] = set()

    def put(self, fut: FutureMessage) -> None:
        self._unacknowledged.add(fut)
        fut.add_done_callback(self._unacknowledged.discard)
        super().put(fut)

    async def flush(self) -> None:
        """Wait for the writes that are in the buffer now: later ones belong to a later commit."""
        if writes := set(self._unacknowledged):
            _, late = await asyncio.wait(writes, timeout=2 * PUBLISH_TIMEOUT)
            if late:
                end_process(f"the brokers did not acknowledge {len(late)} changelog writes")

    async def wait_until_ebb(self) -> None:
        if len(self._unacknowledged) > UNACKNOWLEDGED_LIMIT:
            await self.flush()


class GuardedProducer(driver.Producer):
    """Faust's producer, which only writes changelogs here: idempotent, with the guarded buffer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.buffer = GuardedBuffer(loop=self.loop, beacon=self.beacon)
        self.buffer.app = self.app

    def _settings_extra(self) -> Mapping[str, Any]:
        return {"acks": "all", "enable_idempotence": True}


class GuardedTopic(faust.Topic):
    """F5: a record that the brokers reject ends the process.

    Trap: Faust logs a warning and commits the event (topics.py ``_on_published``).
    """

    def _on_published(
        self, fut: "asyncio.Future[Any]", message: FutureMessage, producer: ProducerT, state: Any
    ) -> None:
        if fut.cancelled() or fut.exception() is not None:
            cause = "cancelled" if fut.cancelled() else repr(fut.exception())
            end_process(f"cannot write a record to {self.get_topic_name()}: {cause}")
        _produced_to(self.get_topic_name()).inc()
        super()._on_published(fut, message, producer, state)


class GuardedStream(Stream):  # type: ignore[type-arg]
    """F3, F4: an event is acknowledged only when the agent requests the next one.

    Trap: Faust also acknowledges an event whose agent raised or was cancelled, as soon as its generator is closed
    (streams.py ``_py_aiter``), and an agent that awaits during its clean-up leaves time to
    commit it. The compiled version (_cython/streams.pyx ``after``) also bypasses ``Consumer.ack``, and only some
    platforms' wheels have it: the Python version always runs here.
    """

    def __aiter__(self) -> Any:
        acknowledge, self.enable_acks = self.enable_acks, False
        values = self._values(acknowledge)
        self._active_agens.add(values)
        return values

    async def _values(self, acknowledge: bool) -> AsyncGenerator[Any, None]:
        async with aclosing(cast("AsyncGenerator[Any, None]", self._py_aiter())) as values:
            async for value in values:
                event = self.current_event
                yield value
                if acknowledge and event is not None:
                    await self.ack(event)


class GuardedAgent(faust.Agent):
    """F3: an exception that leaves an agent ends the process.

    Trap: Faust restarts the agent and skips the event, also with ``noack`` and with every supervisor
    strategy (agents/agent.py ``_execute_actor``). Upstream: faust-streaming/faust #189, #315, #527.
    """

    async def _execute_actor(self, coro: Awaitable[Any], aref: Any) -> None:
        await super()._execute_actor(self._run_guarded(coro), aref)

    async def _run_guarded(self, coro: Awaitable[Any]) -> None:
        try:
            with no_stray_cancellation():
                await coro
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - the agent must not skip the event, whatever the error
            end_process(f"agent {self.name} failed: {error!r}", error=error)
        if not self.app.should_stop:
            end_process(f"agent {self.name} ended although its stream did not")


class GuardedRecovery(Recovery):
    """Ends the process when a rebalance can't be completed; measures the duration of recoveries.

    Trap: Faust takes a step that exceeds its timeout for a stop of the service (tables/recovery.py ``_wait``):
    the worker stays in the group and never processes anything again.
    """

    async def _wait(self, coro: WaitArgT, timeout: Seconds | None = None) -> None:
        try:
            await super()._wait(coro, timeout)
        except ServiceStopped:
            if not self.should_stop:
                end_process(f"the brokers did not answer in {timeout} s during a rebalance")
            raise

    def _set_recovery_started(self) -> None:
        if not self.in_recovery:
            self._began_at = monotonic()
        super()._set_recovery_started()

    def _set_recovery_ended(self) -> None:
        if self.in_recovery:
            cast("GuardedApp", self.app).worker_monitor.note_recovery(monotonic() - self._began_at)
        super()._set_recovery_ended()


class GuardedTableManager(TableManager):
    """Makes the guarded recovery."""

    @property
    def recovery(self) -> Recovery:
        if self._recovery is None:
            self._recovery = GuardedRecovery(self.app, self, beacon=self.beacon, loop=self.loop)
        return self._recovery


class GuardedTransport(driver.Transport):
    """Makes the guarded consumer and producer."""

    Consumer: ClassVar[Any] = GuardedConsumer
    Producer: ClassVar[Any] = GuardedProducer


class WithoutWeb(BootStrategy):
    """Trap: ``faust worker`` starts the web server, whatever the setting says."""

    enable_web = False


class GuardedApp(faust.App):
    """A Faust app made of the guarded parts."""

    BootStrategy = WithoutWeb
    consumer: GuardedConsumer

    def __init__(
        self,
        name: str,
        *,
        role: Role,
        system_settings: Settings,
        delivery_window: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(name, **options)
        self.delivery_window = delivery_window
        self.has_assignment = False
        self.worker_monitor = WorkerMonitor(self, role, system_settings)
        self._system_settings = system_settings
        self._drained_by: float | None = None

    def _new_transport(self) -> GuardedTransport:
        return GuardedTransport(self.conf.broker_consumer, self)

    @cached_property
    def flow_control(self) -> FlowControlEvent:
        return GuardedFlowControl(self)

    def _create_directories(self) -> None:
        self.conf.datadir.mkdir(parents=True, exist_ok=True)
        super()._create_directories()

    async def on_started_init_extra_tasks(self) -> None:
        """Trap: Faust ignores that a stray cancellation ended a task or timer (mode/services.py ``_execute_task``)."""
        for task in self._app_tasks:
            self.add_future(self._guarded(task()))

    async def _guarded(self, task: Awaitable[Any]) -> None:
        with no_stray_cancellation():
            await task

    async def on_first_start(self) -> None:
        await super().on_first_start()
        try:
            await self.add_async_context(self.worker_monitor.running())
            await require_topics_of(self, self._system_settings)
        except (kafka.KafkaUnavailableError, kafka.MissingTopicsError, ProbesError) as error:
            end_process(str(error), EXIT_UNAVAILABLE)

    def on_rebalance_start(self) -> None:
        self.has_assignment = False
        metrics.REBALANCES.inc()
        super().on_rebalance_start()

    async def _on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        await super()._on_partitions_assigned(assigned, generation_id)
        self.has_assignment = True
        self.worker_monitor.note_assignment()

    def _crash(self, reason: BaseException) -> None:
        """A crash inside Faust ends the process; Faust itself would go on with the services that are left."""
        end_process(f"{self.conf.id} crashed: {reason!r}", error=reason)

    async def stop(self) -> None:
        if self._drained_by is None:
            self._drained_by = monotonic() + STOP_DRAIN
            reason = f"{self.conf.id} did not stop in {STOP_LIMIT:.0f} s"
            limit = threading.Timer(STOP_LIMIT - 0.5, end_process, [reason])
            limit.daemon = True
            limit.start()
        await super().stop()

    def _on_rebalance_when_stopped(self) -> None:
        """F2: the consumer stays open until the finished offsets are committed.

        Trap: Faust closes it here, from the wrong thread, when a rebalance comes during a stop, as it does when
        all workers of a group are stopped together.
        """

    @property
    def is_connected(self) -> bool:
        """Whether the consumer exists and is connected."""
        return self._consumer is not None and self.consumer.is_connected

    @property
    def recovery_remaining(self) -> int:
        """Changelog records that recovery has yet to read."""
        tables = cast("GuardedTableManager", self.tables)
        return max(0, tables.recovery.active_remaining_total()) if self.in_recovery else 0

    @property
    def drain_seconds(self) -> float:
        """Remaining seconds of the drain deadline for in-flight events when their stream ends."""
        return STOP_DRAIN if self._drained_by is None else max(0.0, self._drained_by - monotonic())


async def require_topics_of(app: faust.App, settings: Settings) -> None:
    """F9: raise MissingTopicsError unless every topic of ``app`` exists, co-partitioned if the app has a table.

    Trap: Faust waits for missing topics, or creates them with another number of partitions than the inputs of its
    tables, and then loses events. Raises KafkaUnavailableError if no broker can be reached.
    """
    tables = set(app.tables.changelog_topics)
    topics = tables | {name for agent in app.agents.values() for name in agent.get_topic_names()}
    await kafka.require_topics(settings, topics)
    if tables:
        await kafka.require_partitions(settings, topics, app.conf.topic_partitions)


def credentials_of(settings: Settings) -> CredentialsT | None:
    """The broker credentials in Faust's terms; None for PLAINTEXT."""
    context = kafka.ssl_context(settings)
    if settings.kafka_security_protocol.startswith("SASL"):
        password = settings.kafka_sasl_password
        return SASLCredentials(
            username=settings.kafka_sasl_username,
            password=password.get_secret_value() if password else None,
            ssl_context=context,
            mechanism=settings.kafka_sasl_mechanism,
        )
    return SSLCredentials(context=context) if context else None


def create_app(
    name: str,
    *,
    role: Role,
    settings: Settings,
    partitions: int,
    delivery_window: int | None = None,
    **overrides: Any,
) -> GuardedApp:
    """A Faust app with every guard; ``name`` is its id and consumer group, ``role`` selects its metrics.

    ``delivery_window`` bounds the in-flight events of a worker. It is divided evenly among the assigned partitions (at
    least one event each), so a slow agent delays no other partition; None: as many as the buffers take, in the order
    of the partitions.
    ``overrides`` are Faust settings. Raises RuntimeError if another version of Faust is installed than the guards
    were written for, ValueError if an override would disable a guard.
    """
    if faust.__version__ != GUARDED_VERSION:
        raise RuntimeError(f"faust-streaming {faust.__version__} is installed; the guards need {GUARDED_VERSION}")
    if unsafe := sorted(FIXED.keys() & overrides.keys()):
        raise ValueError(f"settings that the guards depend on can't be overridden: {', '.join(unsafe)}")
    brokers = settings.kafka_brokers or "127.0.0.1:9092"  # an unset variable is an error at start, not at import
    options: dict[str, Any] = {
        "broker": [f"kafka://{address.strip()}" for address in brokers.split(",")],
        "broker_credentials": credentials_of(settings),
        "broker_session_timeout": SESSION_TIMEOUT,
        "broker_heartbeat_interval": SESSION_TIMEOUT / 3,  # two may get lost
        "broker_rebalance_timeout": REBALANCE_TIMEOUT,
        # Longer than the rebalance timeout, or JoinGroup would time out and start again
        "broker_request_timeout": REBALANCE_TIMEOUT + 5,
        # Without a poll for this long aiokafka leaves the group and never rejoins; backpressure during a Cassandra
        # outage must not cause that.
        "broker_max_poll_interval": 7 * 86_400.0,
        "consumer_metadata_max_age_ms": 10_000,  # until partitions that `init --partitions` adds are read
        "broker_commit_interval": 1.0,  # bounds the redeliveries after a kill -9
        # Events queued per agent; a full queue blocks the delivery to all agents
        "stream_buffer_maxsize": max(1024, delivery_window or 0),
        "producer_linger": 0.02,  # seconds that changelog writes wait to share a request
        "producer_max_batch_size": 128 * 1024,
        "producer_request_timeout": PUBLISH_TIMEOUT,
        "store": "memory://",  # tables are recovered from their changelog
        "datadir": settings.data_dir.absolute() / "faust" / name,  # not in the current directory
        "topic_partitions": partitions,
        "autodiscover": False,  # the module that is run imports its agents
        **overrides,
        **FIXED,
    }
    return GuardedApp(
        name,
        role=role,
        system_settings=settings,
        delivery_window=delivery_window,
        Agent=GuardedAgent,
        Topic=GuardedTopic,
        Stream=GuardedStream,
        TableManager=GuardedTableManager,
        **options,
    )


async def handle(
    stream: StreamT[bytes], handler: Callable[[EventT[bytes]], Awaitable[None]], *, in_flight: int, longest: float
) -> None:
    """Process a stream's events concurrently, up to ``in_flight``; each is acknowledged when its handler returns.

    They may finish in any order: an offset is committed only when all before it are finished. A full window is
    backpressure: nothing is taken from the stream. A handler's exception ends the process (F3). When the stream ends,
    at a stop, the in-flight events have the rest of the drain deadline; then they are cancelled and never
    acknowledged, so they are redelivered. For agents without tables: a table is written by one event at a time.
    ``longest``: maximum duration of one event in seconds; after ``STALL_FACTOR`` times as long the process ends.
    """
    app = cast("GuardedApp", stream.app)
    source = cast("Stream[bytes]", stream).noack()
    permits = asyncio.Semaphore(in_flight)
    running: set[asyncio.Task[None]] = set()

    async def process(event: EventT[bytes]) -> None:
        app.consumer.note_start(event.message, longest)
        try:
            with no_stray_cancellation():
                await handler(event)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - as in GuardedAgent
            position = f"{event.message.topic}/{event.message.partition} offset {event.message.offset}"
            end_process(f"{app.conf.id} failed at {position}: {error!r}", error=error)
        await source.ack(event)

    def on_done(task: asyncio.Task[None]) -> None:
        running.discard(task)
        permits.release()

    events = aiter(source.events())
    try:
        while True:
            await permits.acquire()
            event = await anext(events, None)
            if event is None:
                return
            task = asyncio.create_task(process(event))
            running.add(task)
            task.add_done_callback(on_done)
    finally:
        if running:
            _, late = await asyncio.wait(set(running), timeout=app.drain_seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)


def run_worker(app: faust.App) -> int:
    """Run ``app`` until SIGTERM or SIGINT, as ``faust worker`` does, and return the exit code.

    The logging configuration is kept. The process ends with ``EXIT_UNAVAILABLE`` if brokers or topics are missing
    at start, and with ``EXIT_FATAL`` if continuing could lose an event.
    """
    # Faust is verbose at INFO; at DEBUG it formats tables at each commit, which costs a third of the throughput
    level = logging.INFO if logger.isEnabledFor(logging.DEBUG) else logging.WARNING
    for name in ("faust", "mode", "aiokafka", __name__):
        logging.getLogger(name).setLevel(level)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    worker = faust.Worker(app, loop=loop, quiet=True, override_logging=False, redirect_stdouts=False)
    worker.spinner = None
    try:
        worker.execute_from_commandline()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
