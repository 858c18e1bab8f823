"""Verifies the history against the log."""

from datetime import datetime

from infra.settings import Settings
from streams.events.images import ImageFailed, ImageProcessed
from streams.events.requests import RequestCompleted, RequestCreated
from streams.log.report import OnEvents, Report
from streams.projections.history import History
from streams.projections.history.queries import RequestSums
from streams.projections.history.tables import SUMS
from streams.projections.image_digest import ImageDigest
from streams.projections.log_of_requests import LogOfRequests
from streams.request.lifecycle import Completion, Lifecycle, advance
from streams.request.tally import Tally, chunk_count, chunk_range


async def verify_history(
    settings: Settings, history: History, request_id: str | None, on_events: OnEvents, report: Report
) -> None:
    """Compare every image's row, and the state of each request, with the log.

    One partition of the log at a time is held in memory: it has all events of its requests.
    """
    log = LogOfRequests(settings, request_id, on_events)
    for partition in await log.partitions():
        await _verify_partition(history, log, partition, report)
    report.events += log.read


async def _verify_partition(history: History, log: LogOfRequests, partition: int, report: Report) -> None:
    results: dict[str, dict[int, ImageDigest]] = {}
    created: dict[str, tuple[str, datetime]] = {}
    lives: dict[str, Lifecycle] = {}
    summaries: dict[str, RequestCompleted] = {}  # of each request, the event of its completion
    async for events in log.events(log.topics.image_results, log.topics.requests, only_partition=partition):
        for event in events:
            if isinstance(event, ImageProcessed | ImageFailed):
                images = results.setdefault(event.request_id, {})
                images[event.index] = images.get(event.index, ImageDigest()).after(event)
            elif isinstance(event, RequestCreated):
                created[event.request_id] = (event.owner, event.time)
            else:
                life = lives[event.request_id] = advance(lives.get(event.request_id, Lifecycle()), event)
                if isinstance(event, RequestCompleted) and life.completion == Completion.of(event):
                    summaries[event.request_id] = event
    for of_request, (owner, created_at) in created.items():
        life = lives.get(of_request, Lifecycle())
        summary = summaries.get(of_request) if life.is_completed else None
        expected = _facts(life, summary)
        kept = await history.request(of_request)
        found = _facts(await history.lifecycle(of_request), None if summary is None or kept is None else kept[1])
        if found != expected:
            report.differs(f"{of_request}: {found}, but {expected} on the log")
        if summary is not None and not _adds_up(summary, await history.sums_of_request(owner, created_at, of_request)):
            report.differs(f"{of_request}: its sums in the statistics differ from the log")
        if not await history.is_listed(owner, created_at, of_request):
            report.differs(f"{of_request}: it is not in the list of its owner")
    for of_request, images in results.items():
        total = max(images) + 1
        is_forgotten = of_request in lives and lives[of_request].is_forgotten
        for bucket in range(chunk_count(total) + 1):
            rows = await history.whole_images(of_request, bucket)
            on_log = images.keys() & chunk_range(bucket, total)
            for index in sorted(on_log | rows.keys()):
                row, image = rows.get(index), images.get(index)
                if is_forgotten:
                    if row is not None:
                        report.differs(f"{of_request}/{index}: a row, but the request is forgotten")
                elif image is None:
                    report.differs(f"{of_request}/{index}: a row, but no event")
                elif row is None:
                    report.differs(f"{of_request}/{index}: an event, but no row")
                elif wrong := image.wrong_columns(row):
                    report.differs(f"{of_request}/{index}: {', '.join(wrong)}")


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
