"""The progress app: folds events into the table and asks for the output CSV when all images are settled."""

from contextlib import AsyncExitStack

from faust.types import StreamT

from infra.faust_app import create_app
from infra.settings import settings
from streams.consume import read
from streams.event_log import EventLog
from streams.progress.fold import fold, output_due
from streams.resources import Resources
from streams.topics import PROGRESS_TABLE, Topics

topics = Topics(settings().topic_prefix)
app = create_app(topics.group("progress"), settings=settings(), partitions=settings().partitions)

table = app.Table(PROGRESS_TABLE, key_type=bytes, value_type=bytes, partitions=settings().partitions)


async def _open(stack: AsyncExitStack) -> EventLog:
    log = EventLog(settings())
    await log.start()
    stack.push_async_callback(log.stop)
    return log


resources = Resources(_open)


# One agent for all three topics: their events are folded one after the other, so that no two of them ever
# read a record, wait, and write over each other's change.
@app.agent(
    app.topic(topics.requests, topics.image_results, topics.webhooks, key_type=bytes, value_type=bytes),
    name="fold",
)
async def fold_events(stream: StreamT[bytes]) -> None:
    async with resources as log:
        async for record in stream.events():
            event = await read(record, log)
            if event is None:
                continue
            for key, value in fold(event, table.get).items():
                table[key] = value
            due = output_due(event, table.get)
            if due is not None:
                await log.append(due)
