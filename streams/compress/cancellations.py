"""Set of recently cancelled requests, whose images are not fetched any more.

compress has no table: each of its workers follows the requests topic without a consumer group. A cancellation that it
has not read yet, or has evicted, costs some useless downloads, no more.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from infra.cancellation import cancel_and_wait, run_in_background
from infra.errors import end_process
from infra.kafka import connection_options, start_client, stop_client, unreachable
from infra.settings import Settings
from streams.events.base import UnreadableEvent, utc_now
from streams.events.images import ImageRequested
from streams.events.registry import decode
from streams.events.requests import RequestCancelled
from streams.log.topics import Topics

log = structlog.get_logger(__name__)

LOOK_BACK = timedelta(days=2)
"""Age of the oldest cancellation that is read: images rarely wait longer before they are fetched."""
REMEMBERED = 100_000
CONNECT_SECONDS = 30.0
CATCH_UP_SECONDS = 10.0
POLL_MS = 500
RETRY_SECONDS = 1.0
MAX_RECORDS = 5000
_MARK = RequestCancelled.event_type().encode()


class CancelledRequests:
    """The cancelled runs of up to ``limit`` requests; the oldest are evicted first."""

    def __init__(self, limit: int = REMEMBERED) -> None:
        self._limit = limit
        self._runs: OrderedDict[str, int] = OrderedDict()

    def cover(self, image: ImageRequested) -> bool:
        """Whether an image's run is cancelled; a retry after the cancellation is another run."""
        return image.run <= self._runs.get(image.request_id, -1)

    def take(self, values: Iterable[bytes | None]) -> None:
        """Note the cancellations among the records of the requests topic."""
        for value in values:
            if value is None or _MARK not in value:
                continue  # most are other events, which need not be decoded
            with contextlib.suppress(UnreadableEvent):  # the progress workers dead-letter it
                event = decode(value)
                if isinstance(event, RequestCancelled):
                    self._runs[event.request_id] = max(event.run, self._runs.get(event.request_id, 0))
                    self._runs.move_to_end(event.request_id)
        while len(self._runs) > self._limit:
            self._runs.popitem(last=False)


@asynccontextmanager
async def following_cancellations(settings: Settings) -> AsyncIterator[CancelledRequests]:
    """The cancelled requests, kept up to date for as long as the context lasts.

    Raises KafkaUnavailableError when the brokers can't be reached.
    """
    cancelled = CancelledRequests()
    # A topic that was truncated or created anew is read from its first record: repeats are harmless, gaps are not.
    consumer = AIOKafkaConsumer(**connection_options(settings), enable_auto_commit=False, auto_offset_reset="earliest")
    try:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await start_client(consumer, CONNECT_SECONDS)
                ends = await _seek(consumer, Topics(settings.topic_prefix).requests, settings.partitions)
        except (KafkaError, OSError, TimeoutError) as error:
            raise unreachable(settings, error) from None
        caught_up = asyncio.Event()
        reader = run_in_background(
            _read(consumer, cancelled, ends, caught_up), name="cancelled requests", on_failure=_end
        )
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(caught_up.wait(), CATCH_UP_SECONDS)
            yield cancelled
        finally:
            await cancel_and_wait(reader)
    finally:
        await stop_client(consumer.stop)


def _end(error: BaseException) -> None:
    end_process(f"compress cannot follow cancellations: {error!r}", error=error)


async def _seek(consumer: AIOKafkaConsumer, topic: str, partitions: int) -> dict[TopicPartition, int]:
    """Seek to the first record of the last `LOOK_BACK`; returns the end offsets."""
    places = [TopicPartition(topic, number) for number in range(partitions)]
    consumer.assign(places)
    ends: dict[TopicPartition, int] = await consumer.end_offsets(places)
    since = int((utc_now() - LOOK_BACK).timestamp() * 1000)
    found = await consumer.offsets_for_times(dict.fromkeys(places, since))
    for place in places:
        consumer.seek(place, found[place].offset if found[place] else ends[place])
    return ends


async def _read(
    consumer: AIOKafkaConsumer,
    cancelled: CancelledRequests,
    ends: dict[TopicPartition, int],
    caught_up: asyncio.Event,
) -> None:
    while True:
        try:
            for records in (await consumer.getmany(timeout_ms=POLL_MS, max_records=MAX_RECORDS)).values():
                cancelled.take(record.value for record in records)
            if not caught_up.is_set():
                positions = [await consumer.position(place) >= end for place, end in ends.items()]
                if all(positions):
                    caught_up.set()
        except (KafkaError, OSError) as error:  # transient; any other error ends the process
            log.warning("cannot read cancellations", error=str(error) or type(error).__name__)
            await asyncio.sleep(RETRY_SECONDS)
