"""Sends what is due, for the shards that this worker has.

A shard is a partition of the topics; its owner is who the consumer group gave the partition to. What waits costs
nothing but its row: in memory there is, per host and ten minutes, when the first of its hints is due. A host with
something due has a lane, which follows its hints one after the other; so a host that is down holds up nobody else.

Each attempt is claimed, made, written to the log and taken out of the hints, in this order. The agent that reads the
log records it, and with it the next hint. Wherever the process dies in between, what is left is a hint too
many, which is found out, or an attempt that nobody knows of, which is made again with the same id when its
claim has ended.
"""

import asyncio
import contextlib
import heapq
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from uuid import uuid4

import structlog

from infra.cancellation import cancel_and_wait, run_in_background
from infra.observability import metrics
from streams.events.base import Event, utc_now
from streams.events.webhooks import WebhookAttempted
from streams.log.producer import EventLog
from streams.webhooks.claim import MARGIN, Claim, blocked_until
from streams.webhooks.delivery import Delivery
from streams.webhooks.hosts import SLOW_AFTER, Host, Place, Places
from streams.webhooks.schedule import Outcome
from streams.webhooks.sender import Sender
from streams.webhooks.store import SLOT, Deliveries, Hint

log = structlog.get_logger(__name__)

LOOK_AROUND = 0.5
"""Seconds between two looks at which shards are ours."""
REREAD = 60.0
"""Seconds between two looks at what others may have written, as a rebuild of the history does."""
DRAIN = 4.0
"""Seconds that attempts under way get at a stop: within what the worker as a whole may take."""
PAGE = 50

_NEVER = datetime(9999, 1, 1, tzinfo=UTC)
_FIRST = datetime(1970, 1, 1, tzinfo=UTC)

CatchUp = Callable[[set[int]], Awaitable[None]]
"""Records what is on the log about some shards and not in the projection yet."""


@dataclass
class _Slot:
    """What is known of a partition of hints: read up to where, and when the first one after that is due."""

    due: datetime
    place: tuple[datetime, str] = (_FIRST, "")

    def note(self, due: datetime) -> None:
        """There is a hint to be looked at, and it may lie before the place read up to."""
        self.due = min(self.due, due)
        self.place = min(self.place, (due, ""))


@dataclass
class _Lane:
    """The hints of one host in one shard."""

    slots: dict[datetime, _Slot] = field(default_factory=dict)
    running: bool = False

    @property
    def due(self) -> datetime:
        return min((slot.due for slot in self.slots.values()), default=_NEVER)

    def note(self, hint: Hint) -> None:
        self.slots.setdefault(hint.slot, _Slot(hint.due)).note(hint.due)


@dataclass(eq=False)
class _Shard:
    number: int
    ready: bool = False
    lanes: dict[str, _Lane] = field(default_factory=dict)
    # Messages that are being tried, up to when the log's word of it is recorded, and the hint met meanwhile, if any.
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
        self._places = Places()
        self._agenda: list[tuple[datetime, int, _Shard, str]] = []
        self._numbers = count()
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        metrics.WEBHOOKS_IN_FLIGHT.read_from(lambda: sum(len(shard.under_way) for shard in self._shards.values()))
        metrics.WEBHOOK_HOST_QUEUES.read_from(lambda: sum(len(shard.lanes) for shard in self._shards.values()))
        metrics.WEBHOOK_LATENESS.read_from(self._lateness)

    def recorded(self, event: Event, hint: Hint | None) -> None:
        """The projection has ``event``, and ``hint`` if its message is to be tried again."""
        if isinstance(event, WebhookAttempted):
            shard = self._shards.get(self._deliveries.shard_of(event.request_id))
            if shard is not None:
                self._release(shard, event.webhook_id)
        if hint is not None:
            self.expect(hint)

    async def run(self, owned: Callable[[], set[int]]) -> None:
        """Send what is due in the shards that ``owned`` says are ours, until cancelled.

        Raises what Cassandra or Kafka raise when they stay away: the worker is started again, and goes on.
        """
        reread_at = 0.0
        loop = asyncio.get_running_loop()
        try:
            while self._failure is None:
                self._follow(owned())
                if loop.time() >= reread_at:
                    reread_at = loop.time() + REREAD
                    self._start(self._reread(list(self._shards.values())))
                self._open_lanes()
                await self._pause()
            raise self._failure
        finally:
            await self._drain()

    async def _pause(self) -> None:
        due = self._agenda[0][0] if self._agenda else _NEVER
        seconds = min(LOOK_AROUND, max(0.0, (due - datetime.now(UTC)).total_seconds()))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), seconds)
        self._wake.clear()

    async def _drain(self) -> None:
        self._shards.clear()  # nothing new is begun
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
        """Begin with some shards, once what their last owner did is recorded: else it might be done again."""
        await self._catch_up({shard.number for shard in shards})
        await self._reread(shards)
        for shard in shards:
            shard.ready = True
            for host, lane in shard.lanes.items():
                self._plan(shard, host, lane)

    async def _reread(self, shards: list[_Shard]) -> None:
        for shard in shards:
            for host, slot in await self._deliveries.slots(shard.number):
                lane = shard.lanes.setdefault(host, _Lane())
                lane.slots.setdefault(slot, _Slot(slot)).note(slot)
                self._plan(shard, host, lane)
        for name in [name for name, host in self._hosts.items() if host.is_forgettable]:
            del self._hosts[name]

    def _is_ours(self, shard: _Shard) -> bool:
        return self._shards.get(shard.number) is shard

    def _lateness(self) -> float:
        """Seconds since the first of the webhooks that no lane has begun with was due."""
        due = min((lane.due for shard in self._shards.values() for lane in shard.lanes.values()), default=_NEVER)
        return max(0.0, (datetime.now(UTC) - due).total_seconds())

    # What is due when

    def expect(self, hint: Hint) -> None:
        """There is a hint; those of shards that are not ours are their owners' to find."""
        shard = self._shards.get(hint.shard)
        if shard is not None:
            lane = shard.lanes.setdefault(hint.host, _Lane())
            lane.note(hint)
            self._plan(shard, hint.host, lane)

    def _plan(self, shard: _Shard, host: str, lane: _Lane) -> None:
        due = lane.due
        if not shard.ready or lane.running or due == _NEVER:
            return  # it is planned when the shard is ready, or the lane has come to its end
        earliest = not self._agenda or due < self._agenda[0][0]
        heapq.heappush(self._agenda, (due, next(self._numbers), shard, host))
        if earliest:
            self._wake.set()

    def _open_lanes(self) -> None:
        now = datetime.now(UTC)
        while self._agenda and self._agenda[0][0] <= now:
            _, _, shard, host = heapq.heappop(self._agenda)
            lane = shard.lanes.get(host)
            if self._is_ours(shard) and lane is not None and not lane.running and lane.due <= now:
                lane.running = True
                self._start(self._run_lane(shard, host, lane))

    async def _run_lane(self, shard: _Shard, name: str, lane: _Lane) -> None:
        host = self._hosts.setdefault(name, Host())
        host.users += 1
        try:
            async for hint in self._due_hints(shard, name, lane):
                if hint.webhook_id in shard.under_way:
                    shard.under_way[hint.webhook_id] = hint
                    continue
                shard.under_way[hint.webhook_id] = None
                await host.place()
                place = await self._places.take(host)
                if not self._is_ours(shard):
                    place.leave()
                    host.leave()
                    return
                self._start(self._attempt(shard, hint, host, place))
        finally:
            host.users -= 1
            lane.running = False
        if lane.slots:
            self._plan(shard, name, lane)
        else:
            del shard.lanes[name]

    async def _due_hints(self, shard: _Shard, host: str, lane: _Lane) -> AsyncIterator[Hint]:
        while self._is_ours(shard):
            now = datetime.now(UTC)
            start, slot = min(lane.slots.items(), key=lambda item: item[1].due, default=(_NEVER, _Slot(_NEVER)))
            if slot.due > now:
                return
            place, slot.due, slot.place = slot.place, _NEVER, (_NEVER, "")  # what is noted from here on counts again
            hints = await self._deliveries.hints(shard.number, host, start, place, PAGE)
            due = [hint for hint in hints if hint.due <= now]
            if len(due) < len(hints):
                slot.due = min(slot.due, hints[len(due)].due)
            elif len(hints) == PAGE:
                slot.due = min(slot.due, now)  # there may be more
            last = (due[-1].due, due[-1].webhook_id) if due else place
            slot.place = min(slot.place, last)
            if not hints and place[0] <= start and start + SLOT + timedelta(seconds=REREAD) < now:
                # It is empty, and no more hints come into a slot that is over.
                if slot.due == _NEVER:
                    del lane.slots[start]
                    await self._deliveries.forget_slot(shard.number, host, start)
                continue
            for hint in due:
                yield hint

    # One attempt

    async def _attempt(self, shard: _Shard, hint: Hint, host: Host, place: Place) -> None:
        event: WebhookAttempted | None = None
        try:
            delivery = await self._deliveries.load(hint.webhook_id)
            if await self._is_to_be_made(delivery):
                event, outcome = await self._sent(delivery, place)
                host.learn(outcome)
        finally:
            host.leave()
            place.leave()
        if event is not None:
            await self._log.append(event)
        await self._deliveries.forget(hint)
        if event is None:
            self._release(shard, hint.webhook_id)

    async def _is_to_be_made(self, delivery: Delivery) -> bool:
        """Whether the next attempt is due and now ours to make."""
        now = utc_now()
        if delivery.due is None or delivery.due > now:
            return False  # the hint is one of before
        until = now + timedelta(seconds=self._sender.answer_timeout) + MARGIN
        blocked = blocked_until(delivery, now)
        if blocked is None:
            claim = Claim(delivery.made + 1, until, self._worker)
            if await self._deliveries.claim(delivery, str(claim)):
                return True
        self.expect(await self._deliveries.put_off(delivery, blocked or until))
        return False

    async def _sent(self, delivery: Delivery, place: Place) -> tuple[WebhookAttempted, Outcome]:
        post = asyncio.ensure_future(self._sender.attempt(delivery))
        try:
            await asyncio.wait({post}, timeout=SLOW_AFTER)
            if not post.done():
                await self._places.step_aside(place)
            return await post
        finally:
            post.cancel()

    def _release(self, shard: _Shard, webhook_id: str) -> None:
        hint = shard.under_way.pop(webhook_id, None)
        if hint is not None:
            self.expect(hint)

    # Tasks

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = run_in_background(work, name="webhooks", on_failure=self._fail)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _fail(self, error: BaseException) -> None:
        self._failure = self._failure or error
        self._wake.set()
