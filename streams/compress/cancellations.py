"""Set of recently cancelled and expired requests, whose images are not fetched any more.

compress has no table: each of its workers follows the requests topic without a consumer group. A cancellation that it
has not read yet, or has evicted, costs some useless downloads, no more.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from infra.cancellation import cancel_and_wait, run_in_background
from infra.errors import end_process
from infra.settings import Settings
from streams.events.base import RUNS, UnreadableEvent, utc_now
from streams.events.images import ImageRequested
from streams.events.registry import decode
from streams.events.requests import RequestCancelled, RequestExpired, RequestForgotten
from streams.log.follower import Follower
from streams.log.topics import Topics

LOOK_BACK = timedelta(days=2)
"""Age of the oldest cancellation that is read: images rarely wait longer before they are fetched."""
REMEMBERED = 100_000
CONNECT_SECONDS = 30.0
CATCH_UP_SECONDS = 10.0
_MARKS = tuple(event.event_type().encode() for event in (RequestCancelled, RequestExpired, RequestForgotten))


class CancelledRequests:
    """The cancelled runs of up to ``limit`` requests; the oldest are evicted first."""

    def __init__(self, limit: int = REMEMBERED) -> None:
        self._limit = limit
        self._runs: OrderedDict[str, int] = OrderedDict()

    def covers(self, image: ImageRequested) -> bool:
        """Whether an image's run is cancelled; a retry after the cancellation is another run."""
        return image.run <= self._runs.get(image.request_id, -1)

    def take(self, values: Iterable[bytes | None]) -> None:
        """Note the cancellations among the records of the requests topic."""
        for value in values:
            if value is None or not any(mark in value for mark in _MARKS):
                continue  # most are other events, which need not be decoded
            with contextlib.suppress(UnreadableEvent):  # the progress workers dead-letter it
                event = decode(value)
                if isinstance(event, RequestCancelled | RequestExpired):
                    run = event.run if isinstance(event, RequestCancelled) else RUNS
                    self._runs[event.request_id] = max(run, self._runs.get(event.request_id, 0))
                    self._runs.move_to_end(event.request_id)
        while len(self._runs) > self._limit:
            self._runs.popitem(last=False)


@asynccontextmanager
async def following_cancellations(settings: Settings) -> AsyncIterator[CancelledRequests]:
    """The cancelled requests, kept up to date for as long as the context lasts.

    Raises KafkaUnavailableError when the brokers can't be reached.
    """
    cancelled = CancelledRequests()
    topic = Topics(settings.topic_prefix).requests
    partitions = [TopicPartition(topic, number) for number in range(settings.partitions)]

    async def positions(consumer: AIOKafkaConsumer) -> dict[TopicPartition, int]:
        """Of the first records of the last `LOOK_BACK`."""
        ends = await consumer.end_offsets(partitions)
        since = int((utc_now() - LOOK_BACK).timestamp() * 1000)
        found = await consumer.offsets_for_times(dict.fromkeys(partitions, since))
        return {partition: found[partition].offset if found[partition] else ends[partition] for partition in partitions}

    # A topic that was truncated or created again is read from its first record: repeats are harmless, gaps are not.
    follower = Follower(
        settings, lambda _, records: cancelled.take(record.value for record in records), reset="earliest"
    )
    try:
        await follower.start(positions, CONNECT_SECONDS)
        reader = run_in_background(follower.run(), name="cancelled requests", on_failure=_end)
        try:
            with contextlib.suppress(TimeoutError, KafkaError):
                async with asyncio.timeout(CATCH_UP_SECONDS):
                    await follower.reach(await follower.ends())
            yield cancelled
        finally:
            await cancel_and_wait(reader)
    finally:
        await follower.stop()


def _end(error: BaseException) -> None:
    end_process(f"compress cannot follow cancellations: {error!r}", error=error)
