"""Who makes an attempt: a claim, put onto the message before the POST, by compare-and-set.

The worker that owns a request's partition sends its messages; but one that lost it a moment ago may still be
waiting for a receiver's answer. Its claim keeps the next owner from making the same attempt at the same time. A claim
ends by itself: one of a worker that was killed holds the attempt up that long.
"""

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from streams.log.reader import CLOCK_SKEW
from streams.webhooks.delivery import Delivery

MARGIN = CLOCK_SKEW + timedelta(seconds=5)
"""How much longer than the POST a claim holds: for recording the result, on clocks that differ by a minute."""


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
