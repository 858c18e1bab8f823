"""Scheduler of the due webhooks in the shards that this worker owns.

A shard is a partition of the topics, owned by the worker to which the consumer group assigned it. A pending message
costs only its row: memory has, per host and ten minutes, the due time of the first hint. Each host has its own queue,
which reads its hints in order, so a host that is down delays no other.

Each attempt is claimed, made, appended to the log and deleted from the hints, in this order. The agent that reads the
log records it with the next hint. A crash in between leaves either a stale hint, which is dropped when it is loaded, or
an attempt that is not on the log, which is repeated with the same id when its claim has expired.
"""

import asyncio
import contextlib
import heapq
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count
from typing import Any
from uuid import uuid4

from infra.cancellation import cancel_and_wait, run_in_background
from infra.observability import metrics
from streams.events.base import Event, utc_now
from streams.events.webhooks import WebhookAttempted
from streams.log.producer import EventLog
from streams.webhooks.claim import MARGIN, Claim, blocked_until
from streams.webhooks.delivery import Delivery
from streams.webhooks.host_queue import NEVER, PAGE, HostQueue
from streams.webhooks.hosts import SLOW_AFTER, Host, Permit, Permits
from streams.webhooks.schedule import Outcome
from streams.webhooks.sender import Sender
from streams.webhooks.store import SLOT, Deliveries, Hint, HintedSlot
from streams.webhooks.sweep import Sweep

POLL_INTERVAL = 0.5
"""Poll interval (s) of the shards that are ours."""
REREAD = 60.0
"""Interval (s) of rereading hints that others may have written, such as a rebuild of the history."""
DRAIN = 4.0
"""Timeout (s) of in-flight attempts at a stop, less than that of the whole worker."""

CatchUp = Callable[[set[int]], Awaitable[None]]
"""Applies the events about some shards that are on the log and not in the projection yet."""


@dataclass(eq=False)
class _Shard:
    number: int
    ready: bool = False
    queues: dict[str, HostQueue] = field(default_factory=dict)
    # Messages with an attempt in flight, until its event is applied, and the hint read meanwhile, if any.
    under_way: dict[str, Hint | None] = field(default_factory=dict)


class Dispatcher:
    """One per worker. All methods belong to one event loop."""

    def __init__(self, deliveries: Deliveries, sender: Sender, event_log: EventLog, catch_up: CatchUp) -> None:
        self._deliveries = deliveries
        self._sender = sender
        self._log = event_log
        self._catch_up = catch_up
        self._worker = uuid4().hex
        self._shards: dict[int, _Shard] = {}
        self._hosts: dict[str, Host] = {}
        self._permits = Permits()
        self._agenda: list[tuple[datetime, int, _Shard, str]] = []
        self._numbers = count()
        self._sweep = Sweep(deliveries, REREAD)
        self._rereading: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        metrics.WEBHOOKS_IN_FLIGHT.read_from(lambda: sum(len(shard.under_way) for shard in self._shards.values()))
        metrics.WEBHOOK_HOST_QUEUES.read_from(lambda: sum(len(shard.queues) for shard in self._shards.values()))
        metrics.WEBHOOK_LATENESS.read_from(self._lateness)

    def recorded(self, event: Event, hint: Hint | None) -> None:
        """The projection has ``event``, and ``hint`` if another attempt of its message is due."""
        if isinstance(event, WebhookAttempted):
            shard = self._shards.get(self._deliveries.shard_of(event.request_id))
            if shard is not None:
                self._release(shard, event.webhook_id)
        if hint is not None:
            self.expect(hint)

    async def run(self, owned: Callable[[], set[int]]) -> None:
        """Send the due webhooks of the shards in ``owned``, until cancelled.

        Raises the errors of Cassandra and Kafka in a long outage: the worker is restarted, and resumes.
        """
        reread_at = 0.0
        loop = asyncio.get_running_loop()
        try:
            while self._failure is None:
                self._follow(owned())
                if loop.time() >= reread_at:
                    reread_at = loop.time() + REREAD
                    if self._rereading is None or self._rereading.done():  # one may take long in an outage of Cassandra
                        self._rereading = self._start(self._reread_and_sweep())
                self._open_queues()
                await self._pause()
            raise self._failure
        finally:
            await self._drain()

    async def _pause(self) -> None:
        due = self._agenda[0][0] if self._agenda else NEVER
        seconds = min(POLL_INTERVAL, max(0.0, (due - utc_now()).total_seconds()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        self._wake.clear()

    async def _drain(self) -> None:
        self._shards.clear()  # no new attempts
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=DRAIN)
        await cancel_and_wait(*self._tasks)

    # Shards

    def _follow(self, owned: set[int]) -> None:
        for number in self._shards.keys() - owned:
            del self._shards[number]
        if gained := owned - self._shards.keys():
            shards = [_Shard(number) for number in sorted(gained)]
            self._shards |= {shard.number: shard for shard in shards}
            self._start(self._take_over(shards))

    async def _take_over(self, shards: list[_Shard]) -> None:
        """Start with some shards once the events of their last owner are applied, or attempts might be repeated."""
        await self._catch_up({shard.number for shard in shards})
        await self._reread(shards)
        for shard in shards:
            shard.ready = True
            for host, queue in shard.queues.items():
                self._plan(shard, host, queue)

    async def _reread(self, shards: list[_Shard]) -> None:
        for shard in shards:
            for host, slot in await self._deliveries.slots(shard.number):
                self._expect(shard, host, slot, slot)
        for name in [name for name, host in self._hosts.items() if host.is_forgettable]:
            del self._hosts[name]

    async def _reread_and_sweep(self) -> None:
        await self._reread(list(self._shards.values()))
        await self._sweep.run(self._list_slot)

    async def _list_slot(self, hinted: HintedSlot) -> None:
        """List a slot that is missing in the list: it was never there, or a worker whose clock is ahead deleted it."""
        number, host, slot = hinted
        shard = self._shards.get(number)
        if shard is None or (host in shard.queues and slot in shard.queues[host].slots):
            return
        await self._deliveries.list_slot(number, host, slot)
        self._expect(shard, host, slot, slot)

    def _is_ours(self, shard: _Shard) -> bool:
        return self._shards.get(shard.number) is shard

    def _lateness(self) -> float:
        """Seconds by which the first webhook that is due in a host queue is late."""
        due = min((queue.due for shard in self._shards.values() for queue in shard.queues.values()), default=NEVER)
        return max(0.0, (utc_now() - due).total_seconds())

    # Due times

    def expect(self, hint: Hint) -> None:
        """Schedule a hint; one of another owner's shard is ignored."""
        shard = self._shards.get(hint.shard)
        if shard is not None:
            self._expect(shard, hint.host, hint.slot, hint.due)

    def _expect(self, shard: _Shard, host: str, slot: datetime, due: datetime) -> None:
        queue = shard.queues.setdefault(host, HostQueue())
        queue.note(slot, due)
        self._plan(shard, host, queue)

    def _plan(self, shard: _Shard, host: str, queue: HostQueue) -> None:
        due = queue.due
        if not shard.ready or queue.running or due == NEVER:
            return  # it is planned when the shard is ready, or its host queue has ended
        earliest = not self._agenda or due < self._agenda[0][0]
        heapq.heappush(self._agenda, (due, next(self._numbers), shard, host))
        if earliest:
            self._wake.set()

    def _open_queues(self) -> None:
        now = utc_now()
        while self._agenda and self._agenda[0][0] <= now:
            _, _, shard, host = heapq.heappop(self._agenda)
            queue = shard.queues.get(host)
            if self._is_ours(shard) and queue is not None and not queue.running and queue.due <= now:
                queue.running = True
                self._start(self._run_queue(shard, host, queue))

    async def _run_queue(self, shard: _Shard, name: str, queue: HostQueue) -> None:
        host = self._hosts.setdefault(name, Host())
        host.users += 1
        try:
            async for hint in self._due_hints(shard, name, queue):
                if hint.webhook_id in shard.under_way:
                    shard.under_way[hint.webhook_id] = hint
                    continue
                shard.under_way[hint.webhook_id] = None
                await host.acquire()
                permit = await self._permits.acquire(host)
                if not self._is_ours(shard):
                    permit.release()
                    host.release()
                    return
                self._start(self._attempt(shard, hint, host, permit))
        finally:
            host.users -= 1
            queue.running = False
        if queue.slots:
            self._plan(shard, name, queue)
        else:
            del shard.queues[name]

    async def _due_hints(self, shard: _Shard, host: str, queue: HostQueue) -> AsyncIterator[Hint]:
        while self._is_ours(shard):
            now = utc_now()
            start, slot = queue.first()
            if slot.due > now:
                return
            cursor = slot.begin_page()
            hints = await self._deliveries.hints(shard.number, host, start, cursor, PAGE)
            due = slot.end_page(cursor, hints, now)
            if not hints and cursor[0] <= start and start + SLOT + timedelta(seconds=REREAD) < now:
                # It is empty, and a slot of the past gets no more hints.
                if slot.due == NEVER:
                    del queue.slots[start]
                    await self._deliveries.forget_slot(shard.number, host, start)
                continue
            for hint in due:
                yield hint

    # One attempt

    async def _attempt(self, shard: _Shard, hint: Hint, host: Host, permit: Permit) -> None:
        event: WebhookAttempted | None = None
        try:
            delivery = await self._deliveries.load(hint.webhook_id)
            if await self._is_to_be_made(delivery, hint):
                event, outcome = await self._post(delivery, permit)
                host.learn(outcome)
        finally:
            host.release()
            permit.release()
        if event is not None:
            await self._log.append(event)
        await self._deliveries.forget(hint)
        if event is None:
            self._release(shard, hint.webhook_id)

    async def _is_to_be_made(self, delivery: Delivery, hint: Hint) -> bool:
        """Whether the next attempt is due, and now claimed by this worker."""
        now = utc_now()
        if not delivery.is_due(now, hint.due):
            return False  # a stale hint
        until = now + timedelta(seconds=self._sender.answer_timeout) + MARGIN
        blocked = blocked_until(delivery, now)
        if blocked is None:
            claim = Claim(delivery.made + 1, until, self._worker)
            if await self._deliveries.claim(delivery, str(claim)):
                return True
        self.expect(await self._deliveries.schedule(delivery, blocked or until))
        return False

    async def _post(self, delivery: Delivery, permit: Permit) -> tuple[WebhookAttempted, Outcome]:
        post = asyncio.ensure_future(self._sender.attempt(delivery))
        try:
            await asyncio.wait({post}, timeout=SLOW_AFTER)
            if not post.done():
                await self._permits.move_to_slow(permit)
            return await post
        finally:
            post.cancel()

    def _release(self, shard: _Shard, webhook_id: str) -> None:
        hint = shard.under_way.pop(webhook_id, None)
        if hint is not None:
            self.expect(hint)

    # Tasks

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = run_in_background(work, name="webhooks", on_failure=self._fail)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _fail(self, error: BaseException) -> None:
        self._failure = self._failure or error
        self._wake.set()
