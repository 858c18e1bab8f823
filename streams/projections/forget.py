"""Removes the product names and URLs of forgotten requests from the read models.

What has them is found on the log, as rows of a product's history can't be found by request. Deletions carry a write
timestamp that outranks the writes of every run, so a late redelivery doesn't bring a row back; a rebuild, which may run
when Cassandra has purged the deletions, reads which requests are forgotten first, and leaves names and URLs out.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from datetime import datetime

from aiokafka import TopicPartition

from infra.settings import Settings
from streams.events.base import Event, Offsets, widen
from streams.events.progress import ImagesRerequested
from streams.events.registry import decode_or_none
from streams.events.requests import RequestCompleted, RequestCreated, RequestForgotten, RequestStopped
from streams.log.reader import LogReader, Record
from streams.log.topics import Topics
from streams.projections.history import History
from streams.webhooks.store import Deliveries


async def forget(
    settings: Settings, history: History, deliveries: Deliveries, request_id: str, created_at: datetime
) -> None:
    """Remove the names and URLs of a request, if the log has its `RequestForgotten`. Idempotent."""
    topics = Topics(settings.topic_prefix)
    async with LogReader.open(settings) as reader:
        partitions = [
            await reader.partition_of(topic, request_id.encode())
            for topic in (topics.requests, topics.progress, topics.image_results)
        ]
        starts = {partition: await reader.offset_at(partition, created_at) for partition in partitions}
        forgotten, was_stopped = None, False
        async for events in _batches(reader.read({partitions[0]: starts[partitions[0]]}), request_id):
            for event in events:
                forgotten = event if isinstance(event, RequestForgotten) else forgotten
                was_stopped = was_stopped or isinstance(event, RequestStopped)
        if forgotten is None:
            return
        offsets: Offsets = {}
        async for events in _batches(reader.read(starts), request_id):
            for event in events:
                if isinstance(event, RequestCreated | ImagesRerequested):
                    for number, (first, last) in event.image_offsets.items():
                        widen(offsets, number, first, last)
            await erase(history, deliveries, events, forgotten)
        # Images of a stopped run may have no result: a zombie's may still come, and must find their deletions.
        if was_stopped:
            begin = {TopicPartition(topics.image_requests, number): first for number, (first, _) in offsets.items()}
            end = {TopicPartition(topics.image_requests, number): last + 1 for number, (_, last) in offsets.items()}
            async for events in _batches(reader.read(begin, end), request_id):
                await erase(history, deliveries, events, forgotten)


async def _batches(batches: AsyncIterator[list[Record]], request_id: str) -> AsyncIterator[list[Event]]:
    """The events about a request or its images."""
    async for records in batches:
        near = (record for record in records if (record.key or b"").startswith(request_id.encode()))
        events = (decode_or_none(record.value) for record in near)
        yield [event for event in events if event is not None and event.request_id == request_id]


async def erase(history: History, deliveries: Deliveries, events: Iterable[Event], forgotten: RequestForgotten) -> None:
    """Remove what these events of a forgotten request left in the history and among the webhook messages."""
    async with asyncio.TaskGroup() as removals:
        for event in events:
            removals.create_task(history.erase(event, forgotten))
            removals.create_task(deliveries.erase(event, forgotten))


def without_urls(event: Event) -> Event:
    """An event about a forgotten request, without the header cells and the receiver of webhooks."""
    match event:
        case RequestCreated():
            return event.model_copy(update={"header": (), "webhook_url": None})
        case RequestCompleted() | RequestStopped():
            return event.model_copy(update={"webhook_url": None})
        case _:
            return event
