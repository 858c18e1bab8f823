"""``shrinkstream trace``: a request's timeline, read from the topics themselves."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import click
import orjson

from infra.cli.terminal import printable
from infra.errors import ExplainedError
from infra.kafka.topics import require_topics
from infra.settings import Settings
from streams.events.base import UnreadableEvent
from streams.events.requests import RequestCreated
from streams.log.reader import LogReader
from streams.log.request_records import RequestRecords, find_created, logged
from streams.log.topics import Topics
from streams.request.timeline import EventLine, Gap, GroupLine, Line, Timeline

MAX_SEARCHED = 5_000_000  # records scanned for the RequestCreated: a few seconds per million
MAX_RECORDS = 3_000_000  # per partition
LINES_PER_WRITE = 1000
SMALL = 20
"""A request with at most this many images has a line for each event."""


class UnknownRequestError(ExplainedError):
    """The log has no RequestCreated of this request."""


async def print_trace(settings: Settings, request_id: str, *, every_line: bool, as_json: bool) -> None:
    topics = Topics(settings.topic_prefix)
    await require_topics(settings, topics.configs())
    async with LogReader.open(settings) as reader:
        created = await find_created(reader, topics.requests, request_id, MAX_SEARCHED)
        if created is None:
            raise UnknownRequestError(f"there is no RequestCreated of {request_id} on {topics.requests}")
        trace = Timeline(every_image=every_line or created.total <= SMALL)
        await _read(reader, topics, created, trace)
    show = _print_json if as_json else _print_text
    show(trace, created, topics)


async def _read(reader: LogReader, topics: Topics, created: RequestCreated, trace: Timeline) -> None:
    since = created.time
    about_request = RequestRecords(reader, created.request_id, MAX_RECORDS)
    for topic in (topics.requests, topics.output_requests, topics.webhooks, topics.progress):
        await about_request.add(topic, since)
    await _add_all(about_request, trace)
    # The request's events bound the scan for its images: their offsets, and the end of the results.
    about_images = RequestRecords(reader, created.request_id, MAX_RECORDS)
    await about_images.add_offsets(topics.image_requests, trace.image_offsets)
    await about_images.add(topics.image_results, since, trace.ended_at)
    await _add_all(about_images, trace)
    trace.has_all_images = about_images.complete
    if not (about_request.complete and about_images.complete):
        trace.left_out.append(f"some partitions were read only up to {MAX_RECORDS:,} records")


async def _add_all(source: RequestRecords, trace: Timeline) -> None:
    unreadable = 0
    async for records in source.read():
        for record in records:
            try:
                trace.add(logged(record))
            except UnreadableEvent:
                unreadable += 1
    if unreadable:
        trace.left_out.append(f"{unreadable:,} records can't be decoded: see `shrinkstream dead-letters list`")


def _print_json(trace: Timeline, created: RequestCreated, topics: Topics) -> None:
    head = {
        "kind": "request",
        "requestId": created.request_id,
        "traceId": created.trace_id,
        "createdAt": created.time,
        "total": created.total,
        "status": trace.phase,
        "events": dict(trace.counts),
        "repeats": trace.repeats,
        "leftOut": trace.left_out,
    }
    click.echo(orjson.dumps(head, option=orjson.OPT_UTC_Z))
    for lines in _batched(trace.lines(datetime.now(UTC)), LINES_PER_WRITE):
        click.echo(b"\n".join(line.document for line in lines))


def _print_text(trace: Timeline, created: RequestCreated, topics: Topics) -> None:
    click.echo(f"request {created.request_id}: {trace.phase}, {created.total:,} images in {created.rows:,} rows")
    click.echo(f"trace   {created.trace_id}")
    lines = trace.lines(datetime.now(UTC))
    began = next((line.first for line in lines if line.first is not None), created.time)
    click.echo(f"begins  {began:%Y-%m-%d %H:%M:%S} UTC; times are seconds since then")
    for batch in _batched(lines, LINES_PER_WRITE):
        click.echo("\n".join(printable(_text(line, began, topics), 500) for line in batch))
    counts = ", ".join(f"{count:,} {name}" for name, count in sorted(trace.counts.items()))
    click.echo(f"{sum(trace.counts.values()):,} events, {trace.repeats:,} repeats: {counts}")
    for reason in trace.left_out:
        click.echo(f"INCOMPLETE: {reason}")


def _text(line: Line, began: datetime, topics: Topics) -> str:
    match line:
        case EventLine():
            event = orjson.loads(line.document)
            position = f"{_short(event['topic'], topics)}/{event['partition']}@{event['offset']}"
            text = f"{'REPEAT ' if line.repeat else ''}{event['text']}"
            return f"{_seconds(line.first - began)}  {line.name:<20}  {position:<24}  {event['worker']:<28}  {text}"
        case GroupLine():
            until = f" to {_seconds(line.last - began).strip()}" if line.last > line.first else ""
            workers = ", ".join(f"{worker} {count:,}" for worker, count in line.workers.most_common(5))
            more = f", {len(line.workers) - 5} more" if len(line.workers) > 5 else ""
            size = f", {line.input_bytes / 1e6:.1f} → {line.output_bytes / 1e6:.1f} MB" if line.input_bytes else ""
            repeats = f", REPEATS: {line.repeats:,}" if line.repeats else ""
            return (
                f"{_seconds(line.first - began)}  {line.name:<20}  {_short(line.topic, topics):<24}"
                f"  {line.count:,}{until}{size}{repeats}; by {workers}{more}"
            )
        case Gap():
            at = _seconds(line.first - began) if line.first is not None else " " * 10
            return f"{at}  GAP: {line.text}"


def _batched(lines: Sequence[Line], size: int) -> Iterator[Sequence[Line]]:
    """Batches of lines: a write to standard output per line would be slow."""
    return (lines[start : start + size] for start in range(0, len(lines), size))


def _short(topic: str, topics: Topics) -> str:
    return topic.removeprefix(f"{topics.prefix}.")


def _seconds(since: timedelta) -> str:
    return f"{since.total_seconds():+10.3f}"
