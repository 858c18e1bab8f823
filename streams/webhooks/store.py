"""Webhook messages, their delivery attempts and due times in Cassandra: a projection of the log.

Writes are idempotent and commutative. Due times are only hints: the dispatcher loads the message itself
before it sends anything.
"""

from collections.abc import Container
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from aiokafka import TopicPartition

from infra.cassandra.insert import Insert, columns
from infra.cassandra.session import RETRY_FOR, Session, microseconds, utc
from streams.events.base import Event, utc_now
from streams.events.progress import ImagesSettled
from streams.events.requests import RequestCompleted, RequestForgotten
from streams.events.webhooks import WebhookAttempted, WebhookFailed, WebhookRedeliveryRequested
from streams.log.reader import partition_of
from streams.webhooks.delivery import Attempt, Delivery, Origin
from streams.webhooks.message import completion_id, images_id, message

SLOT = timedelta(minutes=10)
"""The time that the hints of one partition span: see the migration that makes the table."""
KNOWN_SLOTS = 10_000

_INSERT_ORIGIN = Insert(
    "webhook_deliveries",
    columns("request_id", "kind", "run", "url", "body", "created_at", "traceparent", "owner"),
    ("webhook_id",),
)
_INSERT_ATTEMPT = Insert(
    "webhook_deliveries",
    columns(
        "webhook_id", "attempt", "status", "milliseconds", "reason", "next_attempt_at", "last", attempted_at="time"
    ),
)
_ADD_CONFIRMED = "UPDATE webhook_deliveries SET confirmed = confirmed + ? WHERE webhook_id = ?"
_ADD_REDELIVERY = "UPDATE webhook_deliveries SET redeliveries = redeliveries + ? WHERE webhook_id = ?"
_ADD_GIVEN_UP = "UPDATE webhook_deliveries SET given_up = given_up + ? WHERE webhook_id = ?"
_SELECT_DELIVERY = """
    SELECT request_id, owner, kind, run, url, body, created_at, traceparent, redeliveries, confirmed, given_up, claim,
        attempt, attempted_at, status, milliseconds, reason, next_attempt_at, last
    FROM webhook_deliveries WHERE webhook_id = ?"""
_ERASE = "DELETE FROM webhook_deliveries USING TIMESTAMP ? WHERE webhook_id = ?"
_CLAIM = "UPDATE webhook_deliveries SET claim = ? WHERE webhook_id = ? IF claim = ?"

_INSERT_SLOT = "INSERT INTO webhook_due_slots (shard, host, slot) VALUES (?, ?, ?)"
_SELECT_SLOTS = "SELECT host, slot FROM webhook_due_slots WHERE shard = ?"
_SELECT_HINTED = "SELECT DISTINCT shard, host, slot FROM webhook_due LIMIT ?"
_SELECT_HINTED_AFTER = """
    SELECT DISTINCT shard, host, slot FROM webhook_due
    WHERE token(shard, host, slot) > token(?, ?, ?) LIMIT ?"""
_DELETE_SLOT = "DELETE FROM webhook_due_slots WHERE shard = ? AND host = ? AND slot = ?"

_INSERT_HINT = "INSERT INTO webhook_due (shard, host, slot, due, webhook_id) VALUES (?, ?, ?, ?, ?)"
_SELECT_HINTS = """
    SELECT due, webhook_id FROM webhook_due
    WHERE shard = ? AND host = ? AND slot = ? AND (due, webhook_id) > (?, ?) LIMIT ?"""
_DELETE_HINT = "DELETE FROM webhook_due WHERE shard = ? AND host = ? AND slot = ? AND due = ? AND webhook_id = ?"


@dataclass(frozen=True)
class Hint:
    """A due time of a message, which is loaded then. ``shard``: the partition of its request."""

    shard: int
    host: str
    due: datetime
    webhook_id: str

    @property
    def slot(self) -> datetime:
        return slot_of(self.due)


class HintedSlot(NamedTuple):
    """Key of a partition of hints."""

    shard: int
    host: str
    slot: datetime


def slot_of(time: datetime) -> datetime:
    """The start of the ten minutes that contain ``time``."""
    return datetime.fromtimestamp(time.timestamp() // SLOT.total_seconds() * SLOT.total_seconds(), UTC)


def host_of(url: str) -> str:
    """Host and port of a URL: the unit of host queues and of the backoff of an overloaded receiver."""
    try:
        return urlsplit(url).netloc.lower()[:300]
    except ValueError:
        return ""


class Deliveries:
    """The messages of all requests; ``partitions`` is the number of partitions of the topics."""

    def __init__(self, session: Session, partitions: int) -> None:
        self._session = session
        self._partitions = [TopicPartition("webhooks", number) for number in range(partitions)]
        self._known_slots: set[tuple[int, str, datetime]] = set()

    def shard_of(self, request_id: str) -> int:
        """The partition of a request's events."""
        return int(partition_of(request_id.encode(), self._partitions).partition)

    async def record(self, event: Event) -> Hint | None:
        """Apply ``event``; one that is not about a message is ignored.

        Returns the hint of the next delivery attempt, already stored, if there is one.
        """
        webhook_id = await self._write(event)
        return None if webhook_id is None else await self._hint(webhook_id)

    async def record_origin(self, webhook_id: str, origin: Origin) -> Hint | None:
        """Write the body and receiver of a message; returns the same as `record`."""
        await self._write_origin(webhook_id, origin)
        return await self._hint(webhook_id)

    async def _hint(self, webhook_id: str) -> Hint | None:
        delivery = await self.load(webhook_id)
        if delivery.due is None or delivery.origin is None:
            return None
        return await self.schedule(delivery, delivery.due)

    async def _write(self, event: Event) -> str | None:
        """The id of the message that changed, if any."""
        match event:
            case RequestCompleted() if event.webhook_url:
                webhook_id = completion_id(event.request_id, event.run)
                origin = Origin(
                    event.request_id,
                    "request.completed",
                    event.run,
                    event.webhook_url,
                    message(event).decode(),
                    event.time,
                    event.traceparent,
                    event.owner,
                )
                await self._write_origin(webhook_id, origin)
                return webhook_id
            case WebhookAttempted():
                attempt = _INSERT_ATTEMPT.parameters(event)
                await self._execute(_INSERT_ATTEMPT.cql, *attempt, microseconds(event.time))
                # If two workers made the same attempt, a success counts, whatever the other one says later.
                if event.reason is None:
                    await self._execute(_ADD_CONFIRMED, {event.attempt}, event.webhook_id)
            case WebhookFailed():
                await self._execute(_ADD_GIVEN_UP, {event.attempts}, event.webhook_id)
            case WebhookRedeliveryRequested():
                await self._execute(_ADD_REDELIVERY, {event.after_attempt: event.time}, event.webhook_id)
            case _:
                return None
        return event.webhook_id

    async def _write_origin(self, webhook_id: str, origin: Origin) -> None:
        await self._execute(
            _INSERT_ORIGIN.cql, *_INSERT_ORIGIN.parameters(origin, webhook_id), microseconds(origin.created_at)
        )

    async def erase(self, event: Event, forgotten: RequestForgotten) -> None:
        """Remove the messages that an event of a forgotten request made: they have its receiver, and may have names.

        Their delivery attempts go, too, and no more follow. Other events are ignored.
        """
        match event:
            case RequestCompleted():
                messages = [completion_id(event.request_id, event.run)]
            case ImagesSettled():
                messages = [images_id(event, kind) for kind in event.webhook_events]
            case _:
                return
        for webhook_id in messages:
            await self._execute(_ERASE, microseconds(forgotten.time), webhook_id)

    async def load(self, webhook_id: str) -> Delivery:
        """A message with its attempts; an unknown one has neither origin nor attempts."""
        rows = await self._execute(_SELECT_DELIVERY, webhook_id)
        if not rows:
            return Delivery(webhook_id, None)
        first = rows[0]
        origin = first.url and Origin(
            first.request_id,
            first.kind,
            first.run,
            first.url,
            first.body,
            utc(first.created_at),
            first.traceparent,
            first.owner or "",
        )
        return Delivery(
            webhook_id,
            origin or None,
            tuple(_attempt(row, first.confirmed or ()) for row in rows if row.milliseconds is not None),
            {before: utc(at) for before, at in (first.redeliveries or {}).items()},
            frozenset(first.given_up or ()),
            first.claim,
        )

    async def claim(self, delivery: Delivery, claim: str) -> bool:
        """Set ``claim`` on a message unless another worker has claimed it since it was loaded."""
        (row,) = await self._execute(_CLAIM, claim, delivery.webhook_id, delivery.claim)
        # A retry of the statement is not applied if the first one was and its response was lost; the claim is ours.
        return bool(row.applied) or getattr(row, "claim", None) == claim

    async def schedule(self, delivery: Delivery, due: datetime) -> Hint:
        """Write a hint for ``due``, or for now if that has passed: slots of the past get no more hints."""
        origin = delivery.origin
        assert origin is not None
        hint = Hint(self.shard_of(origin.request_id), host_of(origin.url), max(due, utc_now()), delivery.webhook_id)
        slot = (hint.shard, hint.host, hint.slot)
        await self._execute(_INSERT_HINT, *slot, hint.due, hint.webhook_id)
        # The slot after the hint, and again if it may have been deleted meanwhile: a write may take two minutes in
        # an outage of Cassandra, and a hint in an unlisted slot is lost.
        if slot not in self._known_slots or hint.slot + SLOT < utc_now():
            await self.list_slot(*slot)
            if len(self._known_slots) >= KNOWN_SLOTS:
                self._known_slots.clear()
            self._known_slots.add(slot)
        return hint

    async def slots(self, shard: int) -> list[tuple[str, datetime]]:
        """Host and slot of every partition of hints."""
        return [(row.host, utc(row.slot)) for row in await self._execute(_SELECT_SLOTS, shard)]

    async def list_slot(self, shard: int, host: str, slot: datetime) -> None:
        await self._execute(_INSERT_SLOT, shard, host, slot)

    async def hinted_slots(self, after: HintedSlot | None, limit: int) -> list[HintedSlot]:
        """The next partitions of hints that have some, of all shards, whether listed or not, in the order of tokens."""
        cql, cursor = (_SELECT_HINTED, ()) if after is None else (_SELECT_HINTED_AFTER, tuple(after))
        return [HintedSlot(row.shard, row.host, utc(row.slot)) for row in await self._execute(cql, *cursor, limit)]

    async def hints(self, shard: int, host: str, slot: datetime, after: tuple[datetime, str], limit: int) -> list[Hint]:
        """The first hints of a slot after a cursor, by time."""
        rows = await self._execute(_SELECT_HINTS, shard, host, slot, *after, limit)
        return [Hint(shard, host, utc(row.due), row.webhook_id) for row in rows]

    async def forget(self, hint: Hint) -> None:
        await self._execute(_DELETE_HINT, hint.shard, hint.host, hint.slot, hint.due, hint.webhook_id)

    async def forget_slot(self, shard: int, host: str, slot: datetime) -> None:
        self._known_slots.discard((shard, host, slot))
        await self._execute(_DELETE_SLOT, shard, host, slot)

    async def _execute(self, cql: str, *parameters: Any) -> list[Any]:
        return await self._session.execute(cql, parameters, retry_for=RETRY_FOR)


def _attempt(row: Any, confirmed: Container[int]) -> Attempt:
    is_confirmed = row.attempt in confirmed
    return Attempt(
        row.attempt,
        utc(row.attempted_at),
        row.status,
        row.milliseconds,
        None if is_confirmed else row.reason,
        utc(row.next_attempt_at) if row.next_attempt_at and not is_confirmed else None,
        bool(row.last) and not is_confirmed,
    )
