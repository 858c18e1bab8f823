"""The API while Kafka is away: an honest 503 in time, and all of it works again afterwards."""

import asyncio
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from api.context import CONTEXT
from infra.devserver.kafka import EmbeddedKafka
from infra.settings import Settings
from streams.events.base import Event, utc_now
from streams.events.requests import RequestCompleted, RequestRetried
from streams.events.webhooks import WebhookAttempted, WebhookRedeliveryRequested
from streams.log.topics import Topics
from streams.projections.history import History
from streams.webhooks.message import completion_id
from tests.support.changelog import Changelog
from tests.support.examples import created, failed, output_requested, requested
from tests.support.outage import paused
from tests.support.topic_reader import events_in
from tests.support.waiting import eventually
from tests.support.whole_api import Api, serving

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


async def completed_with_failure(api: Api) -> str:
    """A completed request with a failed image and a webhook that was given up, as the workers leave it."""
    context = api.app[CONTEXT]
    request_id = str(uuid4())
    creation = created(request_id, time=utc_now(), webhook_url="https://receiver.example/hook")
    result = failed(requested(request_id, time=creation.time))
    output = output_requested([result], created_at=creation.time, webhook_url=creation.webhook_url)
    completion = RequestCompleted(
        **output.model_dump(), time=output.time, output_csv_url="https://cdn.example/0.csv", output_csv_path="csv/0.csv"
    )
    attempt = WebhookAttempted(
        request_id=request_id, webhook_id=completion_id(request_id, 0), kind="request.completed", attempt=1,
        milliseconds=1, reason="http_410", status=410, last=True,
    )  # fmt: skip
    async with Changelog(context.settings) as changelog:
        await changelog.fold(creation, result, completion)
    for event in (creation, result, completion):
        await History(context.session).record(event)
    await context.deliveries.record(completion)
    await context.deliveries.record(attempt)
    await eventually(lambda: api.answers(200, "GET", f"/api/status/{request_id}"), 60)
    return request_id


@pytest.mark.parametrize(
    ("command", "event_class"), [("retry", RequestRetried), ("webhook/redeliver", WebhookRedeliveryRequested)]
)
async def test_command_on_completed_request_survives_an_outage(
    tmp_path: Path, cassandra_settings: Settings, command: str, event_class: type[Event]
) -> None:
    async with EmbeddedKafka(tmp_path) as kafka, serving(kafka.address, cassandra_settings) as api:
        request_id = await completed_with_failure(api)
        path = f"/api/requests/{request_id}/{command}"
        with paused(kafka):
            for _ in range(2):  # a client repeats what was not answered with success
                assert await api.answers(503, "POST", path)  # in time, or the client gives up
        await eventually(lambda: api.answers(200, "GET", "/readyz"), 60)
        await eventually(lambda: api.answers(202, "POST", path), 60)
        settings = api.app[CONTEXT].settings
        topics = Topics(settings.topic_prefix)
        events = [event for topic in (topics.requests, topics.webhooks) for event in await events_in(settings, topic)]
        assert len({event.id for event in events if isinstance(event, event_class)}) == 1
