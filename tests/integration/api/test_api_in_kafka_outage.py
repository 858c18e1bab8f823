"""The API while Kafka is away: an honest 503 in time, and all of it works again afterwards."""

import asyncio
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from api.context import CONTEXT
from infra.devserver.kafka import EmbeddedKafka
from infra.settings import Settings
from tests.support.outage import paused
from tests.support.waiting import eventually
from tests.support.whole_api import serving

pytestmark = pytest.mark.slow


async def test_every_command_is_answered_in_an_outage(tmp_path: Path, cassandra_settings: Settings) -> None:
    async with EmbeddedKafka(tmp_path) as kafka, serving(kafka.address, cassandra_settings) as api:
        others = await api.requests()  # the keyspace is shared
        known = await api.upload_until_accepted()
        accepted = {known}
        for _ in range(2):
            await eventually(lambda: api.answers(200, "GET", "/readyz"))
            with paused(kafka):
                answers = await asyncio.gather(
                    api.upload(),
                    api.upload(key=str(uuid4())),
                    *(api.call("POST", f"/api/requests/{known}/{command}") for command in ("cancel", "retry")),
                )
                assert [status for status, _ in answers] == [503] * 4
                assert "no request was created" in answers[0][1]["detail"]
                await eventually(lambda: api.answers(503, "GET", "/readyz"))
                await eventually(lambda: api.answers(503, "GET", f"/api/status/{known}"))
            accepted.add(await api.upload_until_accepted())
            await eventually(lambda: api.answers(200, "GET", "/readyz"))
        assert await api.requests() - others == accepted


async def test_outage_between_two_events_creates_no_request(
    tmp_path: Path, cassandra_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kafka stops after it was asked whether it is there."""
    async with EmbeddedKafka(tmp_path) as kafka, serving(kafka.address, cassandra_settings) as api:
        others = await api.requests()
        accepted = await api.upload_until_accepted()

        async def answer_at_once() -> dict[Any, int]:
            return {}

        with monkeypatch.context() as patch:
            patch.setattr(api.app[CONTEXT].view, "ask_ends", answer_at_once)
            with paused(kafka):
                status, problem = await api.upload()
                assert status == 503
                assert "no request was created" in problem["detail"]
                assert api.app[CONTEXT].events.problem is not None
        later = await api.upload_until_accepted()
        assert await api.requests() - others == {accepted, later}
