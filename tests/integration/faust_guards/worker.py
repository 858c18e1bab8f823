"""A Faust worker whose events say what to do with them; ``WORKER_SPEC`` (JSON) says which worker it is.

An event's value is one of: nothing · ``sleep SECONDS`` · ``wait FILE`` (until it is there) · ``raise`` · ``stray`` (a
cancellation that nobody sent) · ``write COUNT SIZE`` (table records, one of one byte otherwise) · ``last SECONDS`` (the
event's offset becomes the value of one key, after so long) · ``defer`` (the same at once, deferred) · ``keys`` (of the
table, to the journal). Each line of the journal file is ``start``, ``end``, ``assigned``, ``keys``, ``asked`` (offsets)
or ``closed``, with its details.
"""

import asyncio
import json
import logging
import os
import sys
from pathlib import Path
from random import randbytes
from typing import Any, cast

from faust.types import EventT, StreamT

from infra.errors import ExplainedError
from infra.faust import app as faust_app
from infra.faust import consumer, handle, monitor, producer, tables, worker_app
from infra.faust.tables import GuardedTable
from infra.settings import Settings
from tests.integration.faust_guards import left_out

spec = json.loads(os.environ["WORKER_SPEC"])
logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
for constant, seconds in spec["constants"].items():
    for module in (faust_app, consumer, handle, monitor, producer, tables, worker_app):
        if hasattr(module, constant):
            setattr(module, constant, seconds)
if spec["without"]:
    left_out.leave_out(spec["without"])
left_out.delay_publishing(spec["publish_delay"])
left_out.delay_seeking(spec["seek_delay"])

app = faust_app.create_app(
    spec["name"],
    role="progress",
    settings=Settings(kafka_brokers=spec["kafka"], data_dir=Path(spec["data_dir"])),
    partitions=spec["partitions"],
    **spec["options"],
)
topic = app.topic(f"{spec['name']}-in", key_type=bytes, value_type=bytes)
table = app.Table("table", key_type=bytes, value_type=bytes, partitions=spec["partitions"]) if spec["table"] else None
journal = os.open(spec["journal"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def note(what: str, *details: object) -> None:
    os.write(journal, f"{' '.join(map(str, (what, *details)))}\n".encode())


if spec["without_answers"]:
    left_out.answer_no_query(note)


async def process(event: EventT[bytes]) -> None:
    place = event.message.partition, event.message.offset
    note("start", *place)
    match event.value.decode().split():
        case ["sleep", seconds]:
            await asyncio.sleep(float(seconds))
            write(place, 1, 1)
        case ["wait", file]:
            while not Path(file).exists():  # noqa: ASYNC110 - it is what tells two processes
                await asyncio.sleep(0.02)
        case ["raise"]:
            raise ValueError("an event that raises")
        case ["stray"]:
            raise asyncio.CancelledError
        case ["keys"]:
            note("keys", place[0], *sorted(key.decode() for key in table or ()))
        case ["last", seconds]:
            await asyncio.sleep(float(seconds))
            if table is not None:
                table[b"last"] = b"%d" % place[1]
        case ["defer"]:
            cast("GuardedTable", table).defer(b"last", b"%d" % place[1])
        case ["write", count, size]:
            write(place, int(count), int(size))
        case _:
            write(place, 1, 1)
    note("end", *place)


def write(place: tuple[int, int], count: int, size: int) -> None:
    if table is not None:
        for number in range(count):
            table[b"%d/%d/%d" % (*place, number)] = randbytes(size)  # nothing that compression makes smaller


@app.agent(topic, name="agent")
async def agent(stream: StreamT[bytes]) -> None:
    try:
        if spec["in_flight"]:
            await handle.handle(stream, process, in_flight=spec["in_flight"], max_seconds=spec["max_seconds"])
        else:
            async for event in stream.events():
                await process(event)
    finally:
        await asyncio.sleep(spec["cleanup"])
        note("closed")


@app.on_rebalance_complete.connect
async def on_rebalance_complete(*_: Any, **__: Any) -> None:
    note("assigned", *sorted(tp.partition for tp in app.consumer.assignment() if tp.topic == topic.get_topic_name()))


@app.task  # type: ignore[untyped-decorator]
async def task() -> None:
    if spec["task_error"]:
        raise {"ExplainedError": ExplainedError, "ValueError": ValueError}[spec["task_error"]]("a task that raises")


if __name__ == "__main__":
    sys.exit(faust_app.run_worker(app))
