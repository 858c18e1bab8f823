"""Consumption of events by the agents without tables: decode, dispatch, dead-letter."""

from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from functools import cache
from typing import Any

import structlog
from faust.types import EventT, StreamT
from prometheus_client import Counter

from infra.faust.handle import Admit, handle
from infra.observability import metrics
from infra.observability.logs import log_about
from streams.events.base import Event, UnreadableEvent
from streams.events.registry import decode
from streams.log.producer import EventLog

logger = structlog.get_logger(__name__)


async def consume(
    stream: StreamT[bytes],
    event_log: EventLog,
    on_event: Callable[[Event], Awaitable[str | None]],
    *,
    in_flight: int,
    max_seconds: float,
    admit: Admit = lambda _: nullcontext(),
) -> None:
    """Call ``on_event`` for each event, up to ``in_flight`` at once; undecodable records go to the dead-letter topic.

    So does the record of an event for which ``on_event`` returns a reason: it is given up. A record is consumed when
    ``on_event`` has returned. When it raises, or takes several times ``max_seconds`` seconds, the process ends and the
    record is delivered again. ``admit`` is that of `handle`.
    """

    async def on_record(record: EventT[bytes]) -> None:
        event = await read(record, event_log)
        if event is not None:
            log_about(event)  # each record has its own task
            given_up = await on_event(event)
            if given_up is not None:
                await _dead_letter(record, event_log, given_up)

    await handle(stream, on_record, in_flight=in_flight, max_seconds=max_seconds, admit=admit)


async def read(record: EventT[bytes], event_log: EventLog) -> Event | None:
    """The event of a record; None for an undecodable one, which is now on the dead-letter topic."""
    try:
        event = decode(record.message.value)
    except UnreadableEvent as error:
        await _dead_letter(record, event_log, str(error))
        return None
    _consumed(type(event)).inc()
    return event


async def _dead_letter(record: EventT[bytes], event_log: EventLog, error: str) -> None:
    message = record.message
    origin: dict[str, Any] = {"topic": message.topic, "partition": message.partition, "offset": message.offset}
    logger.error("record moved to the dead-letter topic", **origin, error=error)
    await event_log.dead_letter(message.value, message.key, **origin, error=error)
    metrics.DEAD_LETTERS.labels(message.topic).inc()


@cache
def _consumed(kind: type[Event]) -> Counter:
    return metrics.CONSUMED.labels(kind.__name__)
