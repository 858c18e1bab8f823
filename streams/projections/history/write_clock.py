"""Cassandra write timestamps of the history: which of two writes to the same cell wins.

Every write has the same timestamp whenever its event comes again, so neither order nor repetition matters. A timestamp
is a time in microseconds, plus a rank that decides where times can't: docs/architecture/workers.md has the table of
ranks. The later run outranks the earlier one although clocks differ; within a run, the rank is less than the step to
the next.
"""

from datetime import datetime

from infra.cassandra.session import microseconds
from streams.events.base import RUNS
from streams.events.images import ImageFailed, ImageProcessed
from streams.events.requests import RequestCompleted, RequestForgotten, RequestStopped
from streams.request.webhook import DeliveryStatus

FINAL = 2**26
"""A success outranks failures of its run, a completion outranks a stop."""
LIVE = -2 * FINAL
"""Live writes are dated earlier by all ranks of a run: a plain write or deletion of now wins over them."""
RUN = 2**29
"""Microseconds between two runs (537 s): a later run wins over a rebuild, though clocks differ by a minute each way."""
assert RUN > 2 * FINAL - LIVE + 120_000_000


class WriteClock:
    """Timestamps of live writes, or of a rebuild.

    ``rebuilt_at``: when the rebuild began; its writes win over all that were made before it, and lose to later runs.
    """

    def __init__(self, rebuilt_at: datetime | None = None) -> None:
        self._rebuilt = None if rebuilt_at is None else microseconds(rebuilt_at)

    def image(self, event: ImageProcessed | ImageFailed) -> int:
        """Of two results of a run, success wins; of two alike one of them, as a whole row."""
        final = FINAL if isinstance(event, ImageProcessed) else 0
        return self.at(event.requested_at, event.run) + final + _in_hour(event.time)

    def summary(self, event: RequestCompleted | RequestStopped) -> int:
        """Of two completions of a run, the one with fewer failures wins: a success came late."""
        final = FINAL if isinstance(event, RequestCompleted) else 0
        return self.at(event.time, event.run) + final + min(event.succeeded, FINAL - 1)

    def webhook(self, status: DeliveryStatus, time: datetime) -> int:
        """Of one run's failed and pending deliveries, the last manual redelivery wins, and its end over its request."""
        return self.at(time, 2 * status.after_attempt + status.failed)

    def forgotten(self, event: RequestForgotten) -> int:
        """A deletion outranks every run, also in a rebuild that began before it."""
        return self.at(event.time, RUNS)

    def at(self, time: datetime, run: int = 0) -> int:
        return (microseconds(time) + LIVE if self._rebuilt is None else self._rebuilt) + run * RUN


def _in_hour(time: datetime) -> int:
    """Milliseconds since the hour began, which distinguish two results of a run."""
    return (time.minute * 60 + time.second) * 1000 + time.microsecond // 1000
