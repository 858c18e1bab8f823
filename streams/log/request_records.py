"""Reader of the records of one request.

Topics hold the records of all requests and grow for ever, so a read is bounded by partition, by time or offsets, and
by number of records.
"""

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime

from aiokafka import TopicPartition

from streams.events.base import Event
from streams.events.registry import decode, decode_or_none
from streams.events.requests import RequestCreated
from streams.log.producer import WORKER
from streams.log.reader import CLOCK_SKEW, LogReader, Record
from streams.request.timeline import Logged

FIRST_READ = 10_000
UNLIMITED = 2**63


class RequestRecords:
    """Collects offset ranges, then reads them. ``complete``: none was cut to ``max_records``."""

    def __init__(self, reader: LogReader, request_id: str, max_records: int = UNLIMITED) -> None:
        """``max_records``: limit of the records scanned per partition, those of other requests included."""
        self._reader = reader
        self._key = request_id.encode()
        self._max_records = max_records
        self._starts: dict[TopicPartition, int | None] = {}
        self._ends: dict[TopicPartition, int] = {}
        self.complete = True

    async def add(self, topic: str, since: datetime, until: datetime | None = None) -> None:
        """Add the records of a topic keyed by request, written from ``since`` to ``until`` or now."""
        partition = await self._reader.partition_of(topic, self._key)
        start = await self._reader.offset_at(partition, since)
        end = (await self._reader.ends([partition]))[partition]
        if until is not None:
            end = min(end, await self._reader.exact_offset_at(partition, until + CLOCK_SKEW))
        self._add(partition, start, end)

    async def add_offsets(self, topic: str, offsets: Mapping[int, tuple[int, int]]) -> None:
        """Add the records between two offsets (inclusive) of each partition, as in ``RequestCreated.image_offsets``."""
        # The offsets in an event may be of another cluster: don't wait for records that don't exist.
        ends = await self._reader.ends(await self._reader.partitions(topic))
        for partition, end in ends.items():
            first, last = offsets.get(partition.partition, (end, end))
            if first < end:
                self._add(partition, first, min(last + 1, end))

    def _add(self, partition: TopicPartition, start: int, end: int) -> None:
        if end - start > self._max_records:
            end = start + self._max_records
            self.complete = False
        self._starts[partition], self._ends[partition] = start, end

    async def read(self) -> AsyncIterator[list[Record]]:
        """The records that are about the request; those of a partition in order. Raises KafkaUnavailableError."""
        about_image = self._key + b"/"
        async for records in self._reader.read(self._starts, self._ends):
            yield [
                record
                for record in records
                if record.key is not None and (record.key == self._key or record.key.startswith(about_image))
            ]

    async def events(self) -> AsyncIterator[list[Event]]:
        """The events of these records."""
        async for records in self.read():
            yield [event for record in records if (event := decode_or_none(record.value)) is not None]


def logged(record: Record) -> Logged:
    """The event of a record, at the time that the record was written. Raises UnreadableEvent."""
    worker = dict(record.headers).get(WORKER, b"?").decode(errors="replace")
    written = datetime.fromtimestamp(record.timestamp / 1000, UTC)
    return Logged(decode(record.value), written, record.topic, record.partition, record.offset, worker)


async def find_created(reader: LogReader, topic: str, request_id: str, max_records: int) -> RequestCreated | None:
    """The RequestCreated, searched backwards from the end of its partition, in at most ``max_records`` records."""
    key = request_id.encode()
    partition = await reader.partition_of(topic, key)
    end = (await reader.ends([partition]))[partition]
    least, length = max(0, end - max_records), FIRST_READ
    while end > least:
        start = max(least, end - length)
        async for records in reader.read({partition: start}, {partition: end}):
            for record in records:
                if record.key == key and isinstance(event := decode_or_none(record.value), RequestCreated):
                    return event
        end, length = start, length * 2
    return None
