"""Removes the product names and URLs of forgotten requests from the read models.

What has them is found on the log, as rows of a product's history can't be found by request. Deletions carry a write
timestamp that outranks the writes of every run, so a late redelivery doesn't bring a row back; a rebuild, which may run
when Cassandra has purged the deletions, reads which requests are forgotten first, and leaves names and URLs out.
"""

import asyncio
from collections.abc import Iterable
from datetime import datetime

from infra.settings import Settings
from streams.events.base import Event
from streams.events.registry import decode_or_none
from streams.events.requests import RequestCompleted, RequestCreated, RequestForgotten, RequestStopped
from streams.log.reader import LogReader
from streams.log.topics import Topics
from streams.projections.history import History
from streams.webhooks.store import Deliveries


async def forget(
    settings: Settings, history: History, deliveries: Deliveries, request_id: str, created_at: datetime
) -> None:
    """Remove the names and URLs of a request, if the log has its `RequestForgotten`. Idempotent."""
    topics, key = Topics(settings.topic_prefix), request_id.encode()
    async with LogReader.open(settings) as reader:
        partitions = [
            await reader.partition_of(topic, key) for topic in (topics.requests, topics.progress, topics.image_results)
        ]
        starts = {partition: await reader.offset_at(partition, created_at) for partition in partitions}
        forgotten = None
        async for records in reader.read({partitions[0]: starts[partitions[0]]}):
            for event in (decode_or_none(record.value) for record in records if record.key == key):
                forgotten = event if isinstance(event, RequestForgotten) else forgotten
        if forgotten is None:
            return
        async for records in reader.read(starts):
            events = (decode_or_none(record.value) for record in records if record.key == key)
            await erase(history, deliveries, (event for event in events if event is not None), forgotten)


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
