"""Webhooks to a real receiver: signed, repeated until confirmed, written down, and not sent again once they arrived."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from standardwebhooks.webhooks import Webhook

from infra.cassandra.session import Session
from infra.outbound import AllowList, OutboundClient
from infra.settings import Settings
from streams.event_log import EventLog
from streams.events import Event, RequestCompleted, WebhookAttempted, WebhookDelivered, WebhookFailed, decode
from streams.projections import webhooks
from streams.projections.history import History
from streams.projections.webhooks import Webhooks, webhook_id
from streams.topics import Topics
from tests.event_loop import run
from tests.examples import completed
from tests.integration.topic_reader import records_in

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "PAUSES", (0.0, 0.01, 0.02, 0.03))
    monkeypatch.setattr(webhooks, "ANSWER_TIMEOUT", 0.5)


@dataclass
class Receiver:
    """Answers with one status after the other, the last one for ever, and keeps what it was sent."""

    statuses: tuple[int, ...] = (200,)
    headers: Mapping[str, str] = field(default_factory=dict)
    silent: bool = False
    got: list[tuple[Mapping[str, str], bytes]] = field(default_factory=list)
    elsewhere: int = 0
    url: str = ""

    async def _hook(self, request: web.Request) -> web.Response:
        self.got.append((dict(request.headers), await request.read()))
        if self.silent:
            await asyncio.sleep(60)
        status = self.statuses[min(len(self.got), len(self.statuses)) - 1]
        return web.Response(status=status, headers=self.headers)

    async def _elsewhere(self, request: web.Request) -> web.Response:
        self.elsewhere += 1
        return web.Response()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Receiver"]:
        app = web.Application()
        app.add_routes([web.post("/hook", self._hook), web.route("*", "/elsewhere", self._elsewhere)])
        async with TestServer(app, host="127.0.0.1") as server:
            self.url = str(server.make_url("/hook"))
            yield self

    def header(self, name: str) -> list[str]:
        return [next(value for key, value in headers.items() if key.lower() == name) for headers, _ in self.got]


@dataclass
class Sender:
    """The webhook projection with its Kafka and its Cassandra."""

    webhooks: Webhooks
    history: History
    settings: Settings
    seen: set[tuple[int, int]] = field(default_factory=set)

    async def deliver(self, event: RequestCompleted) -> list[Event]:
        """Deliver, let the history see what came of it, and return that."""
        await self.webhooks.deliver(event)
        told = []
        for record in await records_in(self.settings, Topics(self.settings.topic_prefix).webhooks, event.request_id):
            place = (record.partition, record.offset)
            if place not in self.seen:
                self.seen.add(place)
                told.append(decode(record.value))  # in order: all of one request are in one partition
        told = [outcome for outcome in told if outcome.request_id == event.request_id]
        for outcome in told:
            await self.history.record(outcome)
        return told


@asynccontextmanager
async def sending(
    settings: Settings, *, allow: str = "127.0.0.1", secret: str | None = SECRET
) -> AsyncIterator[Sender]:
    session = await Session.connect(settings)
    log = EventLog(settings)
    await log.start()
    try:
        async with OutboundClient(AllowList.parse(allow)) as client:
            history = History(session)
            yield Sender(Webhooks(client, log, history, secret), history, settings)
    finally:
        await log.stop()
        await session.close()


def shown(events: list[Event]) -> list[tuple[Any, ...]]:
    return [
        (event.attempt, event.status, event.reason) if isinstance(event, WebhookAttempted) else (type(event).__name__,)
        for event in events
    ]


def test_a_completion_reaches_the_receiver_signed_and_is_written_down(settings: Settings, request_id: str) -> None:
    async def test() -> None:
        async with Receiver().listening() as receiver, sending(settings) as sender:
            event = completed(request_id, webhook_url=receiver.url)
            told = await sender.deliver(event)
            ((headers, body),) = receiver.got
            data = Webhook(SECRET).verify(body, dict(headers))
            assert data["type"] == "request.completed"
            assert data["data"]["requestId"] == request_id
            assert receiver.header("content-type") == ["application/json"]
            assert shown(told) == [(1, 200, None), ("WebhookDelivered",)]
            assert {outcome.request_id for outcome in told} == {request_id}
            assert told[-1] == WebhookDelivered(
                request_id=request_id, time=told[-1].time, webhook_id=webhook_id(event), attempts=1
            )

    run(test())


def test_every_2xx_is_a_confirmation(settings: Settings, request_id: str) -> None:
    async def test() -> None:
        async with sending(settings) as sender:
            for status in (201, 202, 204, 299):
                async with Receiver((status,)).listening() as receiver:
                    told = await sender.deliver(completed(f"{request_id}-{status}", webhook_url=receiver.url))
                assert shown(told) == [(1, status, None), ("WebhookDelivered",)]

    run(test())


def test_a_retry_has_the_same_id_and_body_but_a_time_and_signature_of_its_own(
    settings: Settings, request_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "PAUSES", (0.0, 1.1, 0.0))  # webhook-timestamp counts in seconds

    async def test() -> None:
        async with Receiver((500, 503, 200)).listening() as receiver, sending(settings) as sender:
            event = completed(request_id, webhook_url=receiver.url)
            told = await sender.deliver(event)
            assert shown(told) == [(1, 500, "http_500"), (2, 503, "http_503"), (3, 200, None), ("WebhookDelivered",)]
            assert receiver.header("webhook-id") == [webhook_id(event)] * 3
            assert len({body for _, body in receiver.got}) == 1
            first, second, _ = map(int, receiver.header("webhook-timestamp"))
            assert first < second <= time.time()
            assert len(set(receiver.header("webhook-signature")[:2])) == 2
            for headers, body in receiver.got:
                Webhook(SECRET).verify(body, dict(headers))

    run(test())


def test_a_receiver_that_never_confirms_is_given_up_after_the_last_attempt(settings: Settings, request_id: str) -> None:
    async def test() -> None:
        async with Receiver((500,)).listening() as receiver, sending(settings) as sender:
            told = await sender.deliver(completed(request_id, webhook_url=receiver.url))
            assert len(receiver.got) == len(webhooks.PAUSES)
            assert shown(told)[:-1] == [(n + 1, 500, "http_500") for n in range(len(webhooks.PAUSES))]
            last = told[-1]
            assert isinstance(last, WebhookFailed)
            assert (last.attempts, last.reason) == (len(webhooks.PAUSES), "http_500")

    run(test())


def test_410_ends_it_at_once(settings: Settings, request_id: str) -> None:
    async def test() -> None:
        async with Receiver((410, 200)).listening() as receiver, sending(settings) as sender:
            told = await sender.deliver(completed(request_id, webhook_url=receiver.url))
            assert shown(told) == [(1, 410, "http_410"), ("WebhookFailed",)]
            assert len(receiver.got) == 1

    run(test())


def test_a_redirect_is_a_failure_and_is_not_followed(settings: Settings, request_id: str) -> None:
    async def test() -> None:
        async with sending(settings) as sender:
            for status in (301, 302, 303, 304, 307, 308):
                async with Receiver((status, 200), headers={"Location": "/elsewhere"}).listening() as receiver:
                    told = await sender.deliver(completed(f"{request_id}-{status}", webhook_url=receiver.url))
                    assert shown(told) == [(1, status, f"http_{status}"), (2, 200, None), ("WebhookDelivered",)]
                    assert receiver.elsewhere == 0

    run(test())


def test_a_receiver_that_does_not_answer_in_time_is_a_failed_attempt(
    settings: Settings, request_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "PAUSES", (0.0,))

    async def test() -> None:
        async with Receiver(silent=True).listening() as receiver, sending(settings) as sender:
            told = await sender.deliver(completed(request_id, webhook_url=receiver.url))
            attempt, given_up = told
            assert isinstance(attempt, WebhookAttempted)
            assert (attempt.status, attempt.reason) == (None, "fetch_timeout")
            assert attempt.milliseconds >= 400
            assert isinstance(given_up, WebhookFailed)

    run(test())


def test_nobody_there_and_a_private_address_are_failed_attempts(settings: Settings, request_id: str) -> None:
    async def test() -> None:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))  # ours, so that nobody else listens there either
            url = f"http://127.0.0.1:{nobody.getsockname()[1]}/hook"
            async with sending(settings) as sender:
                told = await sender.deliver(completed(f"{request_id}-a", webhook_url=url))
        assert shown(told)[0] == (1, None, "fetch_connect_failed")
        async with Receiver().listening() as receiver, sending(settings, allow="") as sender:
            told = await sender.deliver(completed(f"{request_id}-b", webhook_url=receiver.url))
            assert told[0].model_dump()["status"] is None
            assert told[0].model_dump()["reason"] in ("fetch_forbidden_address", "fetch_forbidden_port")
            assert isinstance(told[-1], WebhookFailed)
            assert receiver.got == []

    run(test())


@pytest.mark.parametrize("status", [200, 500])
def test_what_is_settled_is_not_sent_again(settings: Settings, request_id: str, status: int) -> None:
    async def test() -> None:
        async with Receiver((status,)).listening() as receiver, sending(settings) as sender:
            event = completed(request_id, webhook_url=receiver.url)
            await sender.deliver(event)
            sent = len(receiver.got)
            # The event comes again, or all of them are read again from the beginning.
            assert await sender.deliver(event) == []
            assert await sender.deliver(event.model_copy(update={"time": event.time + timedelta(days=9)})) == []
            assert len(receiver.got) == sent

    run(test())


def test_without_a_receiver_nothing_is_sent_and_nothing_is_written_down(settings: Settings, request_id: str) -> None:
    async def test() -> None:
        async with sending(settings) as sender:
            assert await sender.deliver(completed(request_id, webhook_url=None)) == []

    run(test())


def test_without_a_secret_there_is_no_signature(settings: Settings, request_id: str) -> None:
    async def test() -> None:
        async with Receiver().listening() as receiver, sending(settings, secret=None) as sender:
            await sender.deliver(completed(request_id, webhook_url=receiver.url))
            ((headers, _),) = receiver.got
            names = {name.lower() for name in headers}
            assert {"webhook-id", "webhook-timestamp"} <= names
            assert "webhook-signature" not in names

    run(test())
