"""Statistics of a running API, by key, and what the command line shows of them."""

import asyncio
import json
import os
from uuid import uuid4

import pytest
from pydantic import SecretStr

from infra.cassandra.session import Session
from infra.settings import Settings
from streams.events.base import Event, utc_now
from streams.projections.history import History
from tests.integration.api.running.conftest import KEY, OTHER_KEY, Api, running_api
from tests.support.console_script import shrinkstream
from tests.support.examples import completed

pytestmark = pytest.mark.slow


def record(settings: Settings, events: list[Event]) -> None:
    async def write() -> None:
        session = await Session.connect(settings)
        try:
            for event in events:
                await History(session).record(event)
        finally:
            await session.close()

    asyncio.run(write())


def test_each_key_has_its_own_stats(api: Api) -> None:
    ours, theirs, now = uuid4().hex, uuid4().hex, utc_now()
    failures = {"fetch_timeout": 1, "fetch_http_404": 3}
    large = completed(
        str(uuid4()), owner=ours, created_at=now, time=now, total=9, succeeded=5, failed=4, failures=failures
    )
    small = completed(str(uuid4()), owner=theirs, created_at=now, time=now, failures={"lost": 1})
    record(api.settings, [large, small])
    with running_api(api.settings, api_keys=SecretStr(f"{ours}:{KEY},{theirs}:{OTHER_KEY}")) as running:
        stats = running.call("GET", "/api/stats").json
        assert [stats[name] for name in ("requests", "images", "failed")] == [1, 9, 4]
        assert [stats[name] for name in ("inputBytes", "outputBytes", "savedBytes")] == [2000, 800, 1200]
        assert [(one["reason"], one["images"], one["title"]) for one in stats["failures"]] == [
            ("fetch_http_404", 3, "404"), ("fetch_timeout", 1, "time-out"),
        ]  # fmt: skip
        (day,) = [day for day in stats["days"] if day["requests"]]
        assert (len(stats["days"]), day["day"], day["savedBytes"]) == (30, now.date().isoformat(), 1200)
        other = running.call("GET", "/api/stats", X_API_Key=OTHER_KEY).json
        assert (other["requests"], other["images"]) == (1, 3)
        assert [one["reason"] for one in other["failures"]] == ["lost"]
        assert running.call("GET", "/api/stats", X_API_Key="wrong").status == 401

        environment = {**os.environ, "SHRINKSTREAM_URL": running.url, "SHRINKSTREAM_API_KEYS": KEY}
        shown = shrinkstream("stats", environment=environment)
        assert shown.returncode == 0, shown.stderr
        _, line, total = shown.stdout.splitlines()
        assert line.split()[:4] == [now.date().isoformat(), "1", "9", "4"]
        assert total.split()[:4] == ["sum", "1", "9", "4"]
        assert "3 x 404 (fetch_http_404)" in shown.stderr
        assert json.loads(shrinkstream("stats", "--json", environment=environment).stdout) == stats
