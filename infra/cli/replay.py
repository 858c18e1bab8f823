"""``shrinkstream replay``: rebuilds a read model from the log, or verifies it against the log."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from uuid import uuid4

import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from infra.cassandra.session import Session
from infra.errors import ExplainedError
from infra.kafka import require_partitions, require_topics
from infra.settings import Settings
from infra.storage import Storage
from streams.events.base import UnreadableEvent
from streams.events.maintenance import ProgressRebuildRequested, ProgressRebuilt
from streams.events.registry import decode
from streams.log.producer import EventLog
from streams.log.reader import LogReader, partition_of
from streams.log.topics import Topics
from streams.progress.rebuild import COMMAND_EXPIRES, corrections, fold_partition
from streams.progress.store import split_key
from streams.projections.history import History
from streams.projections.output_csv import OutputCsv
from streams.projections.rebuild import OnEvents, Report, rebuild_history, rebuild_outputs, verify_history
from streams.webhooks.store import Deliveries

REBUILD_TIMEOUT = COMMAND_EXPIRES.total_seconds()
RECHECK_SECONDS = 3.0


class DifferencesFoundError(ExplainedError):
    """The verification found differences between a read model and the log."""


async def replay(settings: Settings, what: str, request_id: str | None, *, verify: bool, as_json: bool) -> None:
    """Rebuild or verify ``progress``, ``history`` or ``output``. ``verify`` may raise DifferencesFoundError."""
    topics = Topics(settings.topic_prefix)
    await require_topics(settings, topics.configs())
    await require_partitions(settings, topics.keyed_by_request, settings.partitions)
    started = time.monotonic()
    with _bar(what) as on_events:
        if what == "progress":
            if verify:
                report = await _verify_twice(partial(_verify_progress, settings, request_id, on_events))
            else:
                report = await _rebuild_progress(settings, request_id, on_events)
        else:
            report = await _replay_projection(settings, what, request_id, on_events, verify=verify)
    seconds = time.monotonic() - started
    if as_json:
        click.echo(
            orjson.dumps(
                {
                    "what": what,
                    "verified": verify,
                    "events": report.events,
                    "seconds": round(seconds, 3),
                    "differenceCount": report.difference_count,
                    "differences": report.differences,
                }
            )
        )
    else:
        for difference in report.differences:
            click.echo(difference)
    click.echo(f"{report.events} events in {seconds:.1f} s ({report.events / seconds:.0f}/s)", err=True)
    if verify and report.difference_count:
        raise DifferencesFoundError(f"{report.difference_count} differences between {what} and the log")
    if not as_json:
        click.echo(f"{what} matches the log" if verify else f"{what} rebuilt")


async def _replay_projection(
    settings: Settings, what: str, request_id: str | None, on_events: OnEvents, *, verify: bool
) -> Report:
    session = await Session.connect(settings)
    try:
        history = History(session)
        if what == "history" and verify:
            return await _verify_twice(partial(verify_history, settings, history, request_id, on_events))
        if what == "history":
            deliveries = Deliveries(session, settings.partitions)
            return await rebuild_history(settings, history, deliveries, request_id, on_events)
        output = OutputCsv(history, Storage.of(settings), EventLog(settings), settings.data_dir / "spool", patience=0)
        outputs = partial(rebuild_outputs, settings, output, request_id, on_events, verify=verify)
        if verify:
            return await _verify_twice(outputs)
        report = Report()
        await outputs(report)
        return report
    finally:
        await session.close()


async def _rebuild_progress(settings: Settings, request_id: str | None, on_events: OnEvents) -> Report:
    """Request a rebuild from the owner of each table partition, and wait for all of them."""
    topics = Topics(settings.topic_prefix)
    rebuild_id = str(uuid4())
    report = Report()
    events = EventLog(settings, role="replay")
    await events.start()
    try:
        async with LogReader.open(settings) as reader:
            partitions = await reader.partitions(topics.maintenance)
            if request_id is not None:
                partitions = [partition_of(request_id.encode(), partitions)]
            positions = await reader.ends(partitions)
            for partition in partitions:
                await events.append(
                    ProgressRebuildRequested(
                        request_id=request_id or rebuild_id,
                        rebuild_id=rebuild_id,
                        partition=partition.partition,
                        only_request=request_id,
                    ),
                    partition=partition.partition,
                )
            pending = {partition.partition for partition in partitions}
            on_events(0, len(partitions))
            async with asyncio.timeout(REBUILD_TIMEOUT):
                while pending:
                    async for records in reader.read(dict(positions)):
                        for record in records:
                            event = _rebuilt(record.value, rebuild_id)
                            if event is not None and event.partition in pending:
                                pending.discard(event.partition)
                                report.events += event.events
                                on_events(len(partitions) - len(pending), len(partitions))
                    await asyncio.sleep(0.2)
    except TimeoutError:
        raise ExplainedError(
            f"rebuilding progress timed out after {REBUILD_TIMEOUT:g} s: check that the progress workers are running"
        ) from None
    finally:
        await events.stop()
    return report


def _rebuilt(value: bytes | None, rebuild_id: str) -> ProgressRebuilt | None:
    """The event that ends this rebuild in a partition; None for any other record."""
    try:
        event = decode(value)
    except UnreadableEvent:
        return None
    return event if isinstance(event, ProgressRebuilt) and event.rebuild_id == rebuild_id else None


async def _verify_twice(verify: Callable[[Report], Awaitable[None]]) -> Report:
    """Report only differences that persist over two verifications: a live read model always lags behind the log."""
    report = Report()
    await verify(report)
    if report.difference_count:
        await asyncio.sleep(RECHECK_SECONDS)
        report = Report(among=report.marks)
        await verify(report)
    return report


async def _verify_progress(settings: Settings, request_id: str | None, on_events: OnEvents, report: Report) -> None:
    """Compare the table, read from its changelog, with the fold of the log."""
    topics = Topics(settings.topic_prefix)
    async with LogReader.open(settings) as reader:
        partitions = await reader.partitions(topics.progress_changelog)
        if request_id is not None:
            partitions = [partition_of(request_id.encode(), partitions)]
        for done, partition in enumerate(partitions):
            on_events(done, len(partitions))
            present: dict[bytes, bytes] = {}
            async for records in reader.read({partition: None}):
                for record in records:
                    if request_id is not None and split_key(record.key)[0] != request_id:
                        continue
                    if record.value is None:
                        present.pop(record.key, None)
                    else:
                        present[record.key] = record.value
            rebuilt = await fold_partition(settings, partition.partition, request_id)
            report.events += rebuilt.events
            for key, value in sorted(corrections(rebuilt.records, present).items()):
                report.differs(f"{key.decode()}: the table differs from the log", present.get(key), value)
        on_events(len(partitions), len(partitions))


@contextmanager
def _bar(what: str) -> Iterator[OnEvents]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
