"""Removes the product names and URLs of forgotten requests from the read models.

What has them is found on the log, as rows of a product's history can't be found by request. Deletions carry a write
timestamp that outranks the writes of every run, so a late redelivery doesn't bring a row back; a rebuild, which may run
when Cassandra has purged the deletions, reads which requests are forgotten first, and leaves names and URLs out.
"""

import asyncio
from collections.abc import Iterable
from datetime import datetime

from infra.settings import Settings
from streams.events.base import Event, Offsets, widen
from streams.events.progress import ImagesRerequested
from streams.events.requests import RequestCompleted, RequestCreated, RequestForgotten, RequestStopped
from streams.log.reader import LogReader
from streams.log.request_records import RequestRecords
from streams.log.topics import Topics
from streams.projections.history import History
from streams.webhooks.store import Deliveries


async def forget(
    settings: Settings, history: History, deliveries: Deliveries, request_id: str, created_at: datetime
) -> None:
    """Remove the names and URLs of a request, if the log has its `RequestForgotten`. Idempotent."""
    topics = Topics(settings.topic_prefix)
    async with LogReader.open(settings) as reader:
        about = RequestRecords(reader, request_id)
        await about.add(topics.requests, created_at)
        forgotten, was_stopped = None, False
        async for events in about.events():
            for event in events:
                forgotten = event if isinstance(event, RequestForgotten) else forgotten
                was_stopped = was_stopped or isinstance(event, RequestStopped)
        if forgotten is None:
            return
        await about.add(topics.progress, created_at)
        await about.add(topics.image_results, created_at)
        offsets: Offsets = {}
        async for events in about.events():
            for event in events:
                if isinstance(event, RequestCreated | ImagesRerequested):
                    for number, (first, last) in event.image_offsets.items():
                        widen(offsets, number, first, last)
            await erase(history, deliveries, events, forgotten)
        # Images of a stopped run may have no result: a zombie's may still come, and must find their deletions.
        if was_stopped:
            images = RequestRecords(reader, request_id)
            await images.add_offsets(topics.image_requests, offsets)
            async for events in images.events():
                await erase(history, deliveries, events, forgotten)


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
