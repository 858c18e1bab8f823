"""The records of one request: which parts of which topics may hold some, and reading them from there.

Topics go on for ever and hold what is about all requests. What is read for one is bounded by time, by place, and by
number of records.
"""

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime

from aiokafka import TopicPartition

from streams.events.registry import decode, decode_or_none
from streams.events.requests import RequestCreated
from streams.log.producer import WORKER
from streams.log.reader import CLOCK_SKEW, LogReader, Record
from streams.request.timeline import Logged

FIRST_LOOK = 10_000


class RequestRecords:
    """Gathers the parts to be read, then reads them. ``whole``: nothing was left out for its number."""

    def __init__(self, reader: LogReader, request_id: str, max_records: int) -> None:
        """``max_records``: how many are looked at in each partition, those of other requests included."""
        self._reader = reader
        self._key = request_id.encode()
        self._max_records = max_records
        self._starts: dict[TopicPartition, int | None] = {}
        self._ends: dict[TopicPartition, int] = {}
        self.whole = True

    async def add(self, topic: str, since: datetime, until: datetime | None = None) -> None:
        """What a topic that is keyed by request got from ``since`` on, up to ``until`` or now."""
        partition = await self._reader.partition_of(topic, self._key)
        start = await self._reader.offset_at(partition, since)
        end = (await self._reader.ends([partition]))[partition]
        if until is not None:
            end = min(end, await self._reader.exact_offset_at(partition, until + CLOCK_SKEW))
        self._add(partition, start, end)

    def add_offsets(self, topic: str, offsets: Mapping[int, tuple[int, int]]) -> None:
        """Between two offsets, both included, of each partition: as ``RequestCreated.image_offsets`` has them."""
        for number, (first, last) in offsets.items():
            self._add(TopicPartition(topic, number), first, last + 1)

    def _add(self, partition: TopicPartition, start: int, end: int) -> None:
        if end - start > self._max_records:
            end = start + self._max_records
            self.whole = False
        self._starts[partition], self._ends[partition] = start, end

    async def read(self) -> AsyncIterator[list[Record]]:
        """The records that are about the request; those of a partition in order. Raises KafkaUnavailableError."""
        about_image = self._key + b"/"
        present = await self._reader.ends(self._starts)  # what an event says of offsets may be of another cluster
        ends = {partition: min(end, present[partition]) for partition, end in self._ends.items()}
        async for records in self._reader.read(self._starts, ends):
            yield [
                record
                for record in records
                if record.key is not None and (record.key == self._key or record.key.startswith(about_image))
            ]


def logged(record: Record) -> Logged:
    """The event of a record, at the time that the record was written. Raises UnreadableEvent."""
    worker = dict(record.headers).get(WORKER, b"?").decode(errors="replace")
    written = datetime.fromtimestamp(record.timestamp / 1000, UTC)
    return Logged(decode(record.value), written, record.topic, record.partition, record.offset, worker)


async def find_created(reader: LogReader, topic: str, request_id: str, max_records: int) -> RequestCreated | None:
    """The RequestCreated, looked for from the end of its partition backwards, among ``max_records`` at most."""
    key = request_id.encode()
    partition = await reader.partition_of(topic, key)
    end = (await reader.ends([partition]))[partition]
    least, length = max(0, end - max_records), FIRST_LOOK
    while end > least:
        start = max(least, end - length)
        async for records in reader.read({partition: start}, {partition: end}):
            for record in records:
                if record.key == key and isinstance(event := decode_or_none(record.value), RequestCreated):
                    return event
        end, length = start, length * 2
    return None
