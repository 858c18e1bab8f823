"""``shrinkstream replay``: rebuilds a read model from the log, or verifies it against the log."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial

import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from infra.cassandra.session import Session
from infra.errors import ExplainedError
from infra.kafka.topics import require_partitions, require_topics
from infra.settings import Settings
from infra.storage import Storage
from streams.log.producer import EventLog
from streams.log.report import OnEvents, Report
from streams.log.topics import Topics
from streams.progress.maintenance import request_rebuild, verify_progress
from streams.projections.history import History
from streams.projections.output_csv import OutputCsv
from streams.projections.rebuild import rebuild_history, rebuild_outputs
from streams.projections.verify import verify_history
from streams.webhooks.store import Deliveries

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
                report = await _verify_twice(partial(verify_progress, settings, request_id, on_events))
            else:
                report = await request_rebuild(settings, request_id, on_events)
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
        spool = settings.data_dir / "spool"
        output = OutputCsv(history, Storage.of(settings), EventLog(settings), spool, history_timeout=0)
        outputs = partial(rebuild_outputs, settings, output, request_id, on_events, verify=verify)
        if verify:
            return await _verify_twice(outputs)
        report = Report()
        await outputs(report)
        return report
    finally:
        await session.close()


async def _verify_twice(verify: Callable[[Report], Awaitable[None]]) -> Report:
    """Report only differences that persist over two verifications: a live read model always lags behind the log."""
    report = Report()
    await verify(report)
    if report.difference_count:
        await asyncio.sleep(RECHECK_SECONDS)
        report = report.confirming()
        await verify(report)
    return report


@contextmanager
def _bar(what: str) -> Iterator[OnEvents]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
