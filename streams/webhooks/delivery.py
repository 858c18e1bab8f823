"""A webhook message with its delivery attempts and due time: a pure fold of its events."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from streams.events.base import WebhookKind

DeliveryState = Literal["pending", "delivered", "failed"]


@dataclass(frozen=True)
class Attempt:
    """One delivery attempt. ``last``: it failed, and no automatic attempt follows."""

    number: int
    at: datetime
    status: int | None
    milliseconds: int
    reason: str | None
    next_attempt_at: datetime | None
    last: bool


@dataclass(frozen=True)
class Origin:
    """The content and receiver of a message; ``owner``: the API key's name; ``traceparent``: that of its request."""

    request_id: str
    kind: WebhookKind
    run: int
    url: str
    body: str
    created_at: datetime
    traceparent: str | None = None
    owner: str = ""


@dataclass(frozen=True)
class Delivery:
    """State of a message. ``origin`` is None as long as only its attempts are known.

    ``redeliveries``: number of attempts before a manual redelivery → its time; ``given_up``: numbers of the attempts
    that ended in `WebhookFailed`; ``claim``: see `claim`.
    """

    webhook_id: str
    origin: Origin | None
    attempts: tuple[Attempt, ...] = ()
    redeliveries: Mapping[int, datetime] = field(default_factory=dict)
    given_up: frozenset[int] = frozenset()
    claim: str | None = None

    @property
    def made(self) -> int:
        """The number of the last attempt."""
        return self.attempts[-1].number if self.attempts else 0

    @property
    def after_attempt(self) -> int:
        """Number of attempts before the manual redelivery that the next attempt belongs to; 0 without one."""
        return max((before for before in self.redeliveries if before <= self.made), default=0)

    @property
    def due(self) -> datetime | None:
        """Time of the next attempt; None: there is none, or the origin is not known yet."""
        if self.origin is None:
            return None
        # A manual redelivery is satisfied by the next delivery attempt.
        manual = [at for before, at in self.redeliveries.items() if before >= self.made]
        if manual:
            return min(manual)
        if not self.attempts:
            return self.origin.created_at
        last = self.attempts[-1]
        if last.reason is None or last.last or last.number in self.given_up:
            return None
        return last.next_attempt_at or last.at  # earlier events lack the time

    def is_due(self, now: datetime, hinted: datetime) -> bool:
        """Whether the next attempt is to be made; ``hinted``: a due time that has passed.

        That it has counts more than ``now``: the clock may have been set back since, and the hint would be dropped.
        """
        return self.due is not None and self.due <= max(now, hinted)

    @property
    def state(self) -> DeliveryState:
        """A confirmed message stays delivered, also if a manual redelivery fails."""
        if any(attempt.reason is None for attempt in self.attempts):
            return "delivered"
        return "failed" if self.attempts and self.due is None else "pending"
