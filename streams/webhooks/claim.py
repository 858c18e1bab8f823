"""Claim of a delivery attempt: a lease on a message, taken by compare-and-set before the POST.

The worker that owns a request's partition sends its messages, but a zombie may still wait for a receiver's response.
Its claim keeps the next owner from making the same attempt concurrently. A claim expires: that of a worker that was
killed delays the attempt until then.
"""

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from streams.log.reader import CLOCK_SKEW
from streams.webhooks.delivery import Delivery

MARGIN = CLOCK_SKEW + timedelta(seconds=5)
"""Time that a claim outlasts the timeout of its POST: to write the event, plus a minute of clock skew."""


class Claim(NamedTuple):
    attempt: int
    until: datetime
    worker: str

    def __str__(self) -> str:
        return f"{self.attempt}/{round(self.until.timestamp() * 1000)}/{self.worker}"

    @classmethod
    def parse(cls, text: str) -> "Claim":
        attempt, until, worker = text.split("/", 2)
        return cls(int(attempt), datetime.fromtimestamp(int(until) / 1000, UTC), worker)


def blocked_until(delivery: Delivery, now: datetime) -> datetime | None:
    """The end of the claim on the next delivery attempt, if there is one."""
    if delivery.claim is None:
        return None
    claim = Claim.parse(delivery.claim)
    return claim.until if claim.attempt == delivery.made + 1 and claim.until > now else None
