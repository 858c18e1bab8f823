"""Verifies the history against the log, request by request."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import groupby
from operator import attrgetter
from typing import Any

from infra.settings import Settings
from streams.events.base import Event
from streams.events.requests import RequestCompleted, RequestCreated
from streams.log.report import OnEvents, Report
from streams.projections.history import History
from streams.projections.history.queries import RequestSums
from streams.projections.history.tables import IMAGE, SUMS
from streams.projections.history.write_clock import WriteClock
from streams.projections.log_of_requests import LogOfRequests
from streams.projections.sorted_events import OF_REQUEST
from streams.request.lifecycle import Completion, Lifecycle, advance
from streams.request.tally import IMAGES_PER_CHUNK, Tally, chunk_count, chunk_range

_CLOCK = WriteClock()


async def verify_history(
    settings: Settings, history: History, request_id: str | None, on_events: OnEvents, report: Report
) -> None:
    """Compare every image's row, and the state of each request, with the log.

    In memory are the rows of 1,000 images; on disk, one partition of the log.
    """
    log = LogOfRequests(settings, request_id, on_events)
    async for events in log.sorted_events(log.topics.requests, log.topics.image_results):
        for of_request, images in events.requests():
            life = await _verify_request(history, of_request, events.of(of_request, OF_REQUEST), report)
            # Rows beyond the last result may be wrong, too.
            for bucket in range(chunk_count(images) + 1 if images else 0):
                results = events.of(of_request, chunk_range(bucket, (bucket + 1) * IMAGES_PER_CHUNK))
                rows = await history.whole_images(of_request, bucket)
                for index, difference in _differences(rows, results, is_forgotten=life.is_forgotten):
                    report.differs(f"{of_request}/{index}: {difference}")
    report.events += log.read


async def _verify_request(history: History, request_id: str, events: Iterable[Event], report: Report) -> Lifecycle:
    """Compare what the history has about a request as a whole; returns its life according to the log."""
    created: RequestCreated | None = None
    summary: RequestCompleted | None = None  # the event of its completion
    life = Lifecycle()
    for event in events:
        if isinstance(event, RequestCreated):
            created = event
            continue
        life = advance(life, event)
        if isinstance(event, RequestCompleted) and life.completion == Completion.of(event):
            summary = event
    if created is None:
        return life
    expected = _facts(life, summary)
    kept = await history.request(request_id)
    found = _facts(await history.lifecycle(request_id), None if summary is None or kept is None else kept[1])
    if found != expected:
        report.differs(f"{request_id}: {found}, but {expected} on the log")
    listed = (created.owner, created.time, request_id)
    if summary is not None and not _adds_up(summary, await history.sums_of_request(*listed)):
        report.differs(f"{request_id}: its sums in the statistics differ from the log")
    if not await history.is_listed(*listed):
        report.differs(f"{request_id}: it is not in the list of its owner")
    return life


def _differences(
    rows: dict[int, tuple[Any, ...]], events: Iterable[Event], *, is_forgotten: bool
) -> Iterable[tuple[int, str]]:
    """The differences between rows of images and the results, in the order of the images, on the log."""
    for index, results in groupby(events, key=attrgetter("index")):
        row = rows.pop(index, None)
        if is_forgotten:
            if row is not None:
                yield index, "a row, but the request is forgotten"
        elif row is None:
            yield index, "an event, but no row"
        elif wrong := wrong_columns(list(results), row):
            yield index, ", ".join(wrong)
    for index in rows:
        yield index, "a row, but the request is forgotten" if is_forgotten else "a row, but no event"


def wrong_columns(results: Sequence[Any], row: tuple[Any, ...]) -> list[str]:
    """The differences between an image's row (its columns `IMAGE`) and its results on the log.

    As in the history, a column has the value of the last result that has one: of two with one write timestamp, either.
    """
    wrong = []
    written = [(_CLOCK.image(result), result) for result in results]
    for column, value in zip(IMAGE, row, strict=True):
        said = [(at, cell) for at, result in written if (cell := getattr(result, column.field, None)) is not None]
        last = max((at for at, _ in said), default=None)
        expected = {cell for at, cell in said if at == last} or {None}
        # A failure has no other columns; but output_path and reason must match, or it is no failure.
        if expected == {None} and column.name not in ("output_path", "reason"):
            continue
        found = value.replace(tzinfo=UTC) if isinstance(value, datetime) else value
        if column.name == "cells" and value is not None:
            found = tuple(value)
        if found not in expected:
            wrong.append(f"{column.name} is {found!r}, which differs from the log")
    return wrong


def _adds_up(summary: RequestCompleted, sums: RequestSums | None) -> bool:
    """Whether the statistics have the sums of a completion; an event without reasons leaves them open."""
    if sums is None:
        return False
    expected = tuple(getattr(summary, name) for name in SUMS)
    return sums[:-1] == expected and summary.failures in (None, dict(sums.failures or {}))


def _facts(life: Lifecycle, summary: RequestCompleted | Tally | None) -> dict[str, object]:
    """The facts about a request's runs that the history keeps; ``summary``: the sums of a completed one."""
    facts: dict[str, object] = {
        "completed run": None if life.completion is None else life.completion.run,
        "cancelled run": life.cancelled_run,
        "retried run": life.retried_run,
        "expired": life.is_expired,
        "forgotten": life.is_forgotten,
    }
    if life.completion is not None and summary is not None:
        facts |= {
            "completed at": life.completion.at.isoformat(),
            "output CSV": life.completion.output_csv_url,
            "succeeded": summary.succeeded,
            "failed": summary.failed,
            "input bytes": summary.input_bytes,
            "output bytes": summary.output_bytes,
        }
    return facts
