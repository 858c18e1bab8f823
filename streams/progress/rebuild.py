"""Building a partition of the progress table anew from the log, with the same fold."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from aiokafka import TopicPartition

from infra.settings import Settings
from streams.events import UnreadableEvent, decode
from streams.log_reader import LogReader, Record
from streams.progress.fold import Changes, fold, split_key
from streams.topics import Topics

INTERRUPTION_CHECK = 0.2  # seconds
CLEAN_UP_SECONDS = 2.0

T = TypeVar("T")


@dataclass(frozen=True)
class Rebuilt:
    """The records that the log says there should be, and how many events said so."""

    records: dict[bytes, bytes]
    events: int


async def fold_partition(
    settings: Settings, partition: int, only_request: str | None = None, since: datetime | None = None
) -> Rebuilt:
    """Fold all that the log has, in one partition, about all requests or one; ``since`` its creation, where known.

    It may read further than a live worker has got: what that folds later is then a repeat, and changes nothing.
    """
    topics = Topics(settings.topic_prefix)
    key = only_request.encode() if only_request else None
    records: dict[bytes, bytes] = {}
    events = 0
    async with LogReader.open(settings) as reader:
        # One topic after the other: what is said of a request comes after what made it.
        for topic in topics.of_progress:
            place = TopicPartition(topic, partition)
            start = None if since is None else await reader.offset_at(place, since)
            async for batch in reader.read({place: start}):
                for record in batch:
                    if key is None or record.key == key:
                        events += 1
                        _fold_record(record, records)
    return Rebuilt(records, events)


def _fold_record(record: Record, records: dict[bytes, bytes]) -> None:
    try:
        event = decode(record.value)
    except UnreadableEvent:
        return  # among the dead letters already
    for key, value in fold(event, records.get).items():
        if value is None:
            records.pop(key, None)
        else:
            records[key] = value


async def unless_interrupted(work: Coroutine[Any, Any, T], interrupted: Callable[[], bool]) -> T | None:
    """What comes of ``work``; None where ``interrupted`` says before that is there that nobody may wait any longer."""
    task = asyncio.create_task(work)
    try:
        while not (await asyncio.wait({task}, timeout=INTERRUPTION_CHECK))[0]:
            if interrupted():
                task.cancel()
                await asyncio.wait({task}, timeout=CLEAN_UP_SECONDS)
                return None
        return task.result()
    finally:
        task.cancel()


def corrections(rebuilt: dict[bytes, bytes], present: dict[bytes, bytes]) -> Changes:
    """What has to change for ``present`` to become ``rebuilt``; the rows of requests after their chunks.

    A row says that its request is in the table: after a kill half-way, it must not say so of half a request.
    """
    changed: Changes = {key: value for key, value in rebuilt.items() if present.get(key) != value}
    changed.update(dict.fromkeys(present.keys() - rebuilt.keys()))
    return dict(sorted(changed.items(), key=lambda change: split_key(change[0])[1] is None))


def about(key: bytes, request_id: str | None) -> bool:
    return request_id is None or split_key(key)[0] == request_id
