"""The sums of finished requests, and the statistics made of them: each request counts once."""

from collections.abc import Sequence
from datetime import timedelta
from itertools import permutations
from uuid import uuid4

import pytest

from api.requests.stats import DAYS, Stats, stats_of
from infra.cassandra.session import Session
from infra.settings import Settings
from streams.events.base import Event
from streams.events.requests import RequestExpired, RequestStopped
from streams.log.producer import EventLog
from streams.log.report import Report
from streams.projections.history import History
from streams.projections.rebuild import rebuild_history
from streams.projections.verify import verify_history
from streams.webhooks.store import Deliveries
from tests.support.examples import NOON, completed, created


def finished_twice(request_id: str, owner: str) -> list[Event]:
    """A request whose retry brings one image more; the reconciler repeats the completion without reasons."""
    first = completed(request_id, owner=owner, failures={"fetch_http_404": 1})
    retried = completed(
        request_id, owner=owner, run=1, time=NOON + timedelta(hours=1), succeeded=3, failed=0, failures={}
    )
    return [first, first.model_copy(update={"failures": None}), retried]


async def record(history: History, events: Sequence[Event]) -> None:
    for event in events:
        await history.record(event)


def reasons_of(stats: Stats) -> dict[str, int]:
    return {group.reason: group.images for group in stats.failures}


@pytest.mark.parametrize("order", list(permutations(range(3))))
async def test_stats_count_request_once_in_any_order(cassandra_settings: Settings, order: Sequence[int]) -> None:
    """Also if every event is redelivered: the sums are those of the last run."""
    session = await Session.connect(cassandra_settings)
    try:
        history, owner = History(session), uuid4().hex
        for finished in (finished_twice(str(uuid4()), owner), finished_twice(str(uuid4()), owner)[:2]):
            await record(history, [finished[number] for number in (*order, *order) if number < len(finished)])
        stats = await stats_of(history, owner, NOON)
        assert (stats.requests, stats.images, stats.failed) == (2, 6, 1)
        assert (stats.input_bytes, stats.output_bytes, stats.saved_bytes) == (4000, 1600, 2400)
        assert reasons_of(stats) == {"fetch_http_404": 1}
    finally:
        await session.close()


async def test_stopped_retry_leaves_no_reasons_of_earlier_run(cassandra_settings: Settings) -> None:
    session = await Session.connect(cassandra_settings)
    try:
        history, owner, request_id = History(session), uuid4().hex, str(uuid4())
        first, *_ = finished_twice(request_id, owner)
        sums = completed(request_id, owner=owner, run=1, succeeded=2, failed=0).model_dump()
        await record(history, [RequestStopped(**sums, time=NOON + timedelta(hours=1)), first])
        stats = await stats_of(history, owner, NOON)
        assert (stats.requests, stats.images, stats.failed, reasons_of(stats)) == (1, 2, 0, {})
    finally:
        await session.close()


async def test_stats_have_each_of_last_30_days(cassandra_settings: Settings) -> None:
    """Those before are left out, an expired request is not."""
    session = await Session.connect(cassandra_settings)
    try:
        history, owner = History(session), uuid4().hex
        for age in (0, DAYS - 1, DAYS):
            request_id, day = str(uuid4()), NOON - timedelta(days=age)
            await record(history, [completed(request_id, owner=owner, created_at=day, time=day)])
            await record(history, [RequestExpired(request_id=request_id, time=NOON)])
        stats = await stats_of(history, owner, NOON)
        assert [day.day for day in stats.days] == [NOON.date() - timedelta(days=age) for age in range(DAYS - 1, -1, -1)]
        assert [day.requests for day in stats.days] == [1, *[0] * (DAYS - 2), 1]
        assert stats.requests == 2
    finally:
        await session.close()


@pytest.mark.slow
async def test_replay_rebuilds_sums_and_verification_compares_them(settings: Settings, request_id: str) -> None:
    session, log, owner = await Session.connect(settings), EventLog(settings), uuid4().hex
    await log.start()
    try:
        history = History(session)
        for event in (created(request_id, owner=owner), *finished_twice(request_id, owner)):
            await log.append(event)
            await history.record(event)

        async def differences() -> list[str]:
            report = Report()
            await verify_history(settings, history, request_id, lambda *_: None, report)
            return report.differences

        before = await stats_of(history, owner, NOON)
        assert await differences() == []
        await session.execute("DELETE FROM sums_by_owner WHERE owner = ? AND day = ?", (owner, NOON.date()))
        assert await differences() == [f"{request_id}: its sums in the statistics differ from the log"]
        deliveries = Deliveries(session, settings.partitions)
        await rebuild_history(settings, history, deliveries, request_id, lambda *_: None)
        assert await stats_of(history, owner, NOON) == before
        assert (before.requests, before.failed) == (1, 0)
        assert await differences() == []
    finally:
        await log.stop()
        await session.close()
