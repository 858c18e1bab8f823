"""Rebuilds a partition of the progress table from the log, with the same fold."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

from aiokafka import TopicPartition

from infra.settings import Settings
from streams.events.base import Event
from streams.events.registry import decode_or_none
from streams.log.reader import LogReader
from streams.log.topics import Topics
from streams.progress.store import Changes, apply, fold, split_key

COMMAND_EXPIRES = timedelta(hours=1)
"""Age at which a command is skipped: the operator who sent it waits no longer."""
INTERRUPTION_CHECK = 0.2  # seconds
CLEAN_UP_SECONDS = 2.0

T = TypeVar("T")


def is_expired(command: Event, now: datetime) -> bool:
    return now - command.time > COMMAND_EXPIRES


@dataclass(frozen=True)
class Rebuilt:
    """The records of the table as the log has them, and the number of events they are folded from."""

    records: dict[bytes, bytes]
    events: int


async def fold_partition(
    settings: Settings, partition: int, only_request: str | None = None, since: datetime | None = None
) -> Rebuilt:
    """Fold the events of one partition about all requests, or about one; ``since`` its creation, where known.

    It may read further than a live worker has: the events that this folds later are then repeats.
    """
    topics = Topics(settings.topic_prefix)
    key = only_request.encode() if only_request else None
    records: dict[bytes, bytes] = {}
    events = 0
    async with LogReader.open(settings) as reader:
        # One topic after the other: events about a request come after its RequestCreated.
        for topic in topics.of_progress:
            place = TopicPartition(topic, partition)
            start = None if since is None else await reader.offset_at(place, since)
            async for batch in reader.read({place: start}):
                for record in batch:
                    if key is None or record.key == key:
                        events += 1
                        event = decode_or_none(record.value)
                        if event is not None:
                            apply(fold(event, records.get).changes, records)
    return Rebuilt(records, events)


async def unless_interrupted(work: Coroutine[Any, Any, T], interrupted: Callable[[], bool]) -> T | None:
    """The result of ``work``, or None if ``interrupted`` first says that there is no more time for it."""
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
    """The changes that make ``present`` into ``rebuilt``; the rows of requests after their tallies.

    A row means that its request is in the table: after a kill half-way, there must be none of half a request.
    """
    changed: Changes = {key: value for key, value in rebuilt.items() if present.get(key) != value}
    changed.update(dict.fromkeys(present.keys() - rebuilt.keys()))
    return dict(sorted(changed.items(), key=lambda change: split_key(change[0])[1] is None))


def about(key: bytes, request_id: str | None) -> bool:
    return request_id is None or split_key(key)[0] == request_id
