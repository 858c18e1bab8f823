"""Gives up poison pills: an event that fails at every attempt must not block its partition.

An outage is not the event's fault: the process ends, is restarted, and tries again until the outage is over.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog
from aiokafka.errors import KafkaError
from cassandra import DriverException, InvalidRequest

from infra.errors import ExplainedError
from streams.events.base import Event
from streams.events.images import ImageFailed, ImageProcessed
from streams.events.requests import OutputCsvRequested, RequestCancelled, RequestCreated

OUTAGES = (ExplainedError, KafkaError, OSError, DriverException)
"""Kafka, Cassandra, the storage or the disk is unavailable, or refuses us: no event is at fault."""

logger = structlog.get_logger(__name__)


@dataclass(frozen=True)
class LastResort:
    """Tries an event ``tries`` times over ``seconds``; then cancels its request, with a reason, by ``append``."""

    append: Callable[[Event], Awaitable[object]]
    tries: int = 6
    seconds: float = 300.0

    def of(self, on_event: Callable[[Event], Awaitable[None]]) -> Callable[[Event], Awaitable[str | None]]:
        """``on_event`` with these tries; it returns why the event was given up, if it was."""

        async def attempt(event: Event) -> str | None:
            for number in range(1, self.tries + 1):
                try:
                    await on_event(event)
                except Exception as error:
                    if is_outage(error):
                        raise
                    logger.exception("event failed", **event.log_fields(), failed_tries=number)
                    if number == self.tries:
                        return await self._give_up(event, error)
                    await asyncio.sleep(self.seconds * 2 ** (number - 1) / (2 ** (self.tries - 1) - 1))
                else:
                    return None
            raise AssertionError("unreachable")

        return attempt

    async def _give_up(self, event: Event, error: Exception) -> str:
        reason = f"{type(event).__name__} failed {self.tries} times: {type(error).__name__}: {error}"[:500]
        # Without these the request would never be completed.
        if isinstance(event, RequestCreated | ImageProcessed | ImageFailed | OutputCsvRequested):
            run = 0 if isinstance(event, RequestCreated) else event.run
            await self.append(
                RequestCancelled(
                    request_id=event.request_id,
                    run=run,
                    reason=f"an internal error: {reason}",
                    traceparent=event.traceparent,
                )
            )
        return reason


def is_outage(error: Exception) -> bool:
    # A statement that Cassandra calls invalid is invalid at each try.
    return isinstance(error, OUTAGES) and not isinstance(error, InvalidRequest)
