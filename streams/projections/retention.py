"""Expires requests that ended longer ago than ``RETENTION_DAYS``, and removes their files.

A pass reads each partition of the requests topic up to its position of that many days ago; a request that had ended by
then, and has not been retried since, expires. `RequestExpired` is written first, and the files are removed when it is
consumed: after a crash it is redelivered, so the removal is completed, and a rebuild knows what it must not restore.
The position of the last pass is the committed offset of a consumer group without members.
"""

from collections.abc import Iterable
from datetime import timedelta

import structlog
from aiokafka import TopicPartition

from infra.kafka.admin import commit_offsets
from infra.settings import Settings
from infra.storage import Storage
from streams.events.base import Event, utc_now
from streams.events.registry import decode_or_none
from streams.events.requests import RequestExpired
from streams.log.producer import EventLog
from streams.log.reader import LogReader
from streams.request.lifecycle import Lifecycle, advance

logger = structlog.get_logger(__name__)

REQUESTS_AT_ONCE = 50_000
"""Candidates that one pass over a partition remembers: some 20 MB."""
GROUP = "retention"


class Candidates:
    """The requests that ended before a time and weren't touched since, as the log of a partition is read in order.

    The reading begins at some offset, so a request's RequestCreated may not be among its events. Pure.
    """

    def __init__(self) -> None:
        self._lives: dict[str, Lifecycle] = {}

    def __len__(self) -> int:
        return len(self._lives)

    def __contains__(self, key: bytes | None) -> bool:
        """Whether a record's key is that of a candidate: only those need to be decoded."""
        return key is not None and key.decode(errors="replace") in self._lives

    def read_old(self, event: Event) -> None:
        """Apply an event from before that time."""
        before = self._lives.get(event.request_id, Lifecycle())
        after = advance(before, event)
        if after is not before:
            self._lives[event.request_id] = after

    def read_later(self, event: Event) -> None:
        """Apply an event from after it: a request that is retried, ended again or expired is no candidate any more."""
        life = self._lives.get(event.request_id)
        if life is not None:
            after = advance(life, event)
            if after.is_expired or after.end != life.end:
                del self._lives[event.request_id]

    @property
    def requests(self) -> list[str]:
        return [request_id for request_id, life in self._lives.items() if life.end is not None and not life.is_expired]


class Retention:
    """Finds and expires requests in this worker's partitions, and removes the files of expired ones."""

    def __init__(self, settings: Settings, event_log: EventLog, storage: Storage) -> None:
        self._settings = settings
        self._events = event_log
        self._storage = storage
        self._group = event_log.topics.group(GROUP)

    async def run_pass(self, partitions: Iterable[int]) -> int:
        """Expire the requests in these partitions whose retention time is over; returns how many."""
        if self._settings.retention_days is None:
            return 0
        border = utc_now() - timedelta(days=self._settings.retention_days)
        found = 0
        async with LogReader.open(self._settings) as reader:
            begun = await reader.committed(self._group, self._events.topics.requests)
            for partition in (TopicPartition(self._events.topics.requests, number) for number in partitions):
                position, end = max(0, begun[partition]), await reader.exact_offset_at(partition, border)
                while position < end:
                    requests, position = await self._candidates(reader, partition, position, end)
                    await self._expire(requests)
                    found += len(requests)
                # Also where it is the same: Kafka forgets a group's offsets that are not renewed.
                await commit_offsets(self._settings, self._group, {partition: position})
        return found

    async def _candidates(
        self, reader: LogReader, partition: TopicPartition, start: int, end: int
    ) -> tuple[list[str], int]:
        """The requests to expire that ended between two offsets, and how far was read for that."""
        candidates = Candidates()
        position = start
        async for records in reader.read({partition: start}, {partition: end}):
            for record in records:
                if (event := decode_or_none(record.value)) is not None:
                    candidates.read_old(event)
            position = records[-1].offset + 1 if records else position
            if len(candidates) >= REQUESTS_AT_ONCE:
                break
        else:
            position = end
        if len(candidates):
            async for records in reader.read({partition: position}):
                for record in records:
                    if record.key in candidates and (event := decode_or_none(record.value)) is not None:
                        candidates.read_later(event)
        return candidates.requests, position

    async def _expire(self, requests: list[str]) -> None:
        for written in [await self._events.enqueue(RequestExpired(request_id=request)) for request in requests]:
            await written

    async def remove(self, request_id: str) -> None:
        """Remove a request's images and output CSVs, as far as they are there."""
        images, csvs = [await self._storage.remove(f"{kind}/{request_id}") for kind in ("images", "csv")]
        logger.info("files of expired request removed", request_id=request_id, images=images, csvs=csvs)
