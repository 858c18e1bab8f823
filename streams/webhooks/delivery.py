"""One message and its attempts, and what is to be done with it: a pure fold of its events."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from streams.events.base import WebhookKind

DeliveryState = Literal["pending", "delivered", "failed"]


@dataclass(frozen=True)
class Attempt:
    """One POST that was made. ``last``: it failed, and no further one follows by itself."""

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
    """A message, as its events have it. ``origin`` is None as long as only its attempts are known.

    ``redeliveries``: for each that was asked for, the number of attempts made before, and when; ``given_up``: the
    numbers of attempts at which it was said that none follows; ``claim``: see `claim`.
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
        """The number of attempts before the redelivery that the next attempt belongs to; 0 without one."""
        return max((before for before in self.redeliveries if before <= self.made), default=0)

    @property
    def due(self) -> datetime | None:
        """When the next attempt is to be made; None: none is, or nobody knows yet what to send."""
        if self.origin is None:
            return None
        # A wish is fulfilled by the first attempt after it.
        wishes = [at for before, at in self.redeliveries.items() if before >= self.made]
        if wishes:
            return min(wishes)
        if not self.attempts:
            return self.origin.created_at
        last = self.attempts[-1]
        if last.reason is None or last.last or last.number in self.given_up:
            return None
        return last.next_attempt_at or last.at  # events of before said not when

    @property
    def state(self) -> DeliveryState:
        """A receiver that confirmed has confirmed, whatever came of a redelivery."""
        if any(attempt.reason is None for attempt in self.attempts):
            return "delivered"
        return "failed" if self.attempts and self.due is None else "pending"
