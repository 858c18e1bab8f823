"""Two retries of a request at the same time, at two API processes."""

from collections import Counter

import pytest

from api.context import CONTEXT, Context
from api.requests import commands
from api.requests.failures import count_failures
from infra.settings import Settings
from streams.events.base import utc_now
from streams.events.requests import RequestRetried
from streams.log.topics import Topics
from streams.projections.history import History
from streams.request.status import Status
from tests.support.changelog import Changelog
from tests.support.examples import completed, created, failed, requested
from tests.support.topic_reader import events_in
from tests.support.waiting import eventually
from tests.support.whole_api import serving

REASON = "fetch_http_404"


@pytest.mark.slow
@pytest.mark.parametrize("reason", ["fetch_timeout", REASON])
async def test_later_retry_with_another_reason_is_refused(
    kafka_address: str, cassandra_settings: Settings, request_id: str, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    """``reason``: of the retry that the other process accepts first. The same retry twice is one fact."""
    async with serving(kafka_address, cassandra_settings) as api:
        context = api.app[CONTEXT]
        results = [failed(requested(request_id, 0), REASON), failed(requested(request_id, 1), "fetch_timeout")]
        story = [created(request_id, total=2), *results, completed(request_id, total=2, succeeded=0, failed=2)]
        async with Changelog(context.settings) as changelog:
            await changelog.fold(*story)
        for event in story:
            await History(context.session).record(event)

        async def is_completed() -> bool:
            _, body = await api.call("GET", f"/api/status/{request_id}")
            return bool(body.get("status") == "completed")

        await eventually(is_completed)
        other = RequestRetried(request_id=request_id, run=1, created_at=story[0].time, reason=reason, time=utc_now())

        async def count_after_other(context: Context, status: Status) -> Counter[str]:
            await context.events.append(other)
            return await count_failures(context, status)

        monkeypatch.setattr(commands, "count_failures", count_after_other)
        status, body = await api.call("POST", f"/api/requests/{request_id}/retry?reason={REASON}")
        if reason == REASON:
            assert status == 202
        else:
            assert (status, body["type"]) == (409, "urn:shrinkstream:problem:still-processing")
        events = await events_in(context.settings, Topics(context.settings.topic_prefix).requests)
        retries = [event for event in events if isinstance(event, RequestRetried)]
        assert len({event.id for event in retries}) == (1 if reason == REASON else 2)
