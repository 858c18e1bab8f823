"""Webhooks by a real worker to real receivers: tried until confirmed, written down, never sent twice for nothing."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest
from pydantic import SecretStr

from infra.cassandra.session import Session
from infra.settings import Settings
from streams.events.base import Event, utc_now
from streams.events.webhooks import WebhookAttempted, WebhookDelivered, WebhookFailed, WebhookRedeliveryRequested
from streams.log.producer import EventLog
from streams.log.topics import Topics
from streams.projections.history import History
from streams.projections.rebuild import rebuild_history
from streams.webhooks.message import completion_id
from streams.webhooks.sender import ANSWER_TIMEOUT
from streams.webhooks.store import Deliveries
from tests.integration.conftest import new_keyspace, system_with_topics
from tests.support import npm_oracle
from tests.support.examples import completed, created
from tests.support.receiver import SECRET, Receiver
from tests.support.topic_reader import events_in
from tests.support.waiting import eventually
from tests.support.worker_process import ProjectionsWorker

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def system(
    kafka_address: str, cassandra_address: str, keyspace: str, tmp_path_factory: pytest.TempPathFactory
) -> Settings:
    """A system with quick repeats."""
    folder = tmp_path_factory.mktemp("webhooks")
    return system_with_topics(kafka_address, folder).model_copy(
        update={
            "cassandra_hosts": cassandra_address,
            "cassandra_keyspace": keyspace,
            "fetch_allow": "127.0.0.1",
            "webhook_secret": SecretStr(SECRET),
            "webhook_schedule": "0.3,0.3,0.3",
        }
    )


@pytest.fixture(scope="module")
def worker(system: Settings) -> Iterator[ProjectionsWorker]:
    running = ProjectionsWorker(system)
    yield running
    assert running.stop() == 0, running.log


@asynccontextmanager
async def appending(system: Settings) -> AsyncIterator[EventLog]:
    log = EventLog(system)
    await log.start()
    try:
        yield log
    finally:
        await log.stop()


async def complete(system: Settings, *events: Event) -> None:
    async with appending(system) as log:
        for event in events:
            await log.append(event)


async def told(system: Settings, request_id: str) -> list[Event]:
    return await events_in(system, Topics(system.topic_prefix).webhooks, request_id)


async def settled(system: Settings, request_id: str, times: int = 1, timeout: float = 240) -> list[Event]:
    """What the log says of a request's webhook once its outcome is there, each fact once."""

    async def is_settled() -> bool:
        events = await told(system, request_id)
        return len({one.id for one in events if isinstance(one, WebhookDelivered | WebhookFailed)}) >= times

    try:
        await eventually(is_settled, timeout)
    except TimeoutError:
        raise AssertionError(f"not settled in {timeout} s: {shown(await told(system, request_id))}") from None
    return list({event.id: event for event in await told(system, request_id)}.values())


def shown(events: list[Event]) -> list[tuple[Any, ...]]:
    return [
        (event.attempt, event.status, event.reason) if isinstance(event, WebhookAttempted) else (type(event).__name__,)
        for event in events
    ]


@pytest.mark.usefixtures("worker")
async def test_completion_reaches_receiver_signed(system: Settings, request_id: str) -> None:
    async with Receiver().listening() as receiver:
        await complete(system, completed(request_id, webhook_url=receiver.url))
        events = await settled(system, request_id)
        assert shown(events) == [(1, 200, None), ("WebhookDelivered",)]
        ((message),) = receiver.verified()
        assert message["type"] == "request.completed"
        headers, body, _ = receiver.got[0]
        assert npm_oracle.accepts(SECRET, headers, body)
        assert not npm_oracle.accepts(SECRET, headers, body.replace(b"completed", b"cancelled"))
        assert receiver.got[0].webhook_id == completion_id(request_id, 0)
        assert receiver.got[0].headers["content-type"] == "application/json"


@pytest.mark.usefixtures("worker")
async def test_retry_has_same_id_and_body(system: Settings, request_id: str) -> None:
    async with Receiver((500, 302, 200), headers={"Location": "/elsewhere"}).listening() as receiver:
        await complete(system, completed(request_id, webhook_url=receiver.url))
        events = await settled(system, request_id)
        assert shown(events) == [
            (1, 500, "http_500"),
            (2, 302, "http_302"),
            (3, 200, None),
            ("WebhookDelivered",),
        ]
        assert len({(one.webhook_id, one.body) for one in receiver.got}) == 1
        assert len(receiver.verified()) == 3
        assert receiver.elsewhere == 0
        assert all(isinstance(one, WebhookAttempted) and one.next_attempt_at for one in events[:2])


@pytest.mark.usefixtures("worker")
async def test_failing_receiver_is_given_up_after_schedule(system: Settings, request_id: str) -> None:
    async with Receiver((500,)).listening() as broken, Receiver((410,)).listening() as gone:
        await complete(
            system,
            completed(f"{request_id}-broken", webhook_url=broken.url),
            completed(f"{request_id}-gone", webhook_url=gone.url),
        )
        events = await settled(system, f"{request_id}-broken")
        assert shown(events) == [*((n, 500, "http_500") for n in (1, 2, 3, 4)), ("WebhookFailed",)]
        assert [one.last for one in events if isinstance(one, WebhookAttempted)] == [False, False, False, True]
        assert shown(await settled(system, f"{request_id}-gone")) == [(1, 410, "http_410"), ("WebhookFailed",)]
        assert (len(broken.got), len(gone.got)) == (4, 1)


@pytest.mark.usefixtures("worker")
async def test_each_run_of_a_request_sends_one_message(system: Settings, request_id: str) -> None:
    async with Receiver().listening() as receiver:
        first, second = (completed(request_id, run=run, webhook_url=receiver.url) for run in (0, 1))
        await complete(system, first)
        await settled(system, request_id)
        await complete(system, first, first, second)  # on one partition, to one host: in this order
        await settled(system, request_id, times=2)
        assert [one.webhook_id for one in receiver.got] == [completion_id(request_id, run) for run in (0, 1)]


@pytest.mark.usefixtures("worker")
async def test_redelivery_has_same_id_and_whole_schedule(system: Settings, request_id: str) -> None:
    webhook_id, next_id = (completion_id(request_id, run) for run in (0, 1))

    async with Receiver((500, 500, 500, 500, 500, 200)).listening() as receiver:
        wish = WebhookRedeliveryRequested(request_id=request_id, webhook_id=webhook_id, after_attempt=4)
        await complete(system, completed(request_id, webhook_url=receiver.url))
        await settled(system, request_id)
        await complete(system, wish, wish)
        events = await settled(system, request_id, times=2)
        attempts = [one for one in events if isinstance(one, WebhookAttempted)]
        assert [one.attempt for one in attempts] == [1, 2, 3, 4, 5, 6]
        assert [one.after_attempt for one in attempts] == [0, 0, 0, 0, 4, 4]
        assert isinstance(events[-1], WebhookDelivered)
        await complete(system, completed(request_id, run=1, webhook_url=receiver.url))
        await settled(system, request_id, times=3)
        assert [one.webhook_id for one in receiver.got] == [webhook_id] * 6 + [next_id], "a repeated wish is one wish"


@pytest.mark.usefixtures("worker")
async def test_silent_receivers_do_not_delay_the_others(system: Settings, request_id: str) -> None:
    async with AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(Receiver(seconds=60).listening()) for _ in range(4)]
        prompt = await stack.enter_async_context(Receiver().listening())
        events = [
            completed(f"{request_id}-{number}-{place}", webhook_url=receiver.url)
            for number in range(25)
            for place, receiver in enumerate([*silent, prompt])
        ]
        await complete(system, *events)
        await prompt.wait_for(25)
        assert sum(len(receiver.got) for receiver in silent) < 100, "the others came first"
        assert all(receiver.max_concurrent <= 8 for receiver in silent)


@pytest.mark.usefixtures("worker")
async def test_retry_after_is_waited_for(system: Settings, request_id: str) -> None:
    async with Receiver((429, 200), headers={"Retry-After": "2"}).listening() as receiver:
        await complete(system, completed(request_id, webhook_url=receiver.url))
        first, second = await receiver.wait_for(2)
        assert second.at - first.at >= 2


# --- processes that end


@pytest.fixture(scope="module")
def own_keyspace(cassandra_address: str) -> str:
    return new_keyspace(cassandra_address)


@pytest.fixture
def own(system: Settings, kafka_settings: Settings, own_keyspace: str) -> Settings:
    """Topics and tables that no other worker reads: it would send the webhooks of their hints, and say so elsewhere."""
    own = kafka_settings.model_dump(include={"topic_prefix", "data_dir"})
    return system.model_copy(update={**own, "cassandra_keyspace": own_keyspace})


async def test_killed_worker_resumes_with_next_attempt(own: Settings) -> None:
    # The next attempt is due when the worker is long dead: one in flight would be repeated after its claim.
    own = own.model_copy(update={"webhook_schedule": "20,0.5"})
    request_ids = {str(uuid4()) for _ in range(5)}

    async def have_attempts() -> bool:
        events = await events_in(own, Topics(own.topic_prefix).webhooks)
        return {event.request_id for event in events} == request_ids

    worker = ProjectionsWorker(own)
    try:
        async with Receiver((500,) * 5 + (200,)).listening() as receiver:
            await complete(own, *(completed(one, webhook_url=receiver.url) for one in request_ids))
            await eventually(have_attempts)
            worker.kill()
            worker.start_again()
            for one in request_ids:
                assert shown(await settled(own, one)) == [
                    (1, 500, "http_500"),
                    (2, 200, None),
                    ("WebhookDelivered",),
                ]
            assert len(receiver.got) == 10
    finally:
        worker.kill()


SHORT_CLAIM = """
from datetime import timedelta
from streams.webhooks import dispatcher
dispatcher.MARGIN = timedelta(seconds=1)
"""


async def test_killed_worker_repeats_its_attempt_after_the_claim(own: Settings) -> None:
    request_id = str(uuid4())

    workers = [ProjectionsWorker(own, "first", SHORT_CLAIM)]
    try:
        async with Receiver(seconds=6).listening() as receiver:
            await complete(own, completed(request_id, webhook_url=receiver.url))
            await receiver.wait_for(1)
            workers[0].kill()
            workers.append(ProjectionsWorker(own, "second", SHORT_CLAIM))
            await receiver.wait_for(2)
            assert receiver.got[1].at - receiver.got[0].at > ANSWER_TIMEOUT, "the first POST might still be under way"
            assert shown(await settled(own, request_id)) == [(1, 200, None), ("WebhookDelivered",)]
            assert [one.webhook_id for one in receiver.got] == [completion_id(request_id, 0)] * 2
            assert receiver.max_concurrent == 1
    finally:
        for worker in workers:
            worker.kill()


async def test_joining_and_leaving_workers_send_each_message_once(own: Settings) -> None:
    request_ids: list[str] = []

    workers = [ProjectionsWorker(own, "first")]
    try:
        async with Receiver(seconds=0.2).listening() as receiver, appending(own) as log:

            async def complete_some() -> None:
                for _ in range(10):
                    request_ids.append(str(uuid4()))
                    await log.append(completed(request_ids[-1], webhook_url=receiver.url))

            await complete_some()
            await receiver.wait_for(1)
            workers.append(ProjectionsWorker(own, "second"))
            while "webhook attempted" not in workers[1].log:
                await complete_some()
                await asyncio.sleep(0.5)
            assert await asyncio.to_thread(workers[0].stop) == 0, workers[0].log
            await complete_some()
            for one in request_ids[-10:]:  # the last ones of each partition
                await settled(own, one)
            wanted = sorted(completion_id(one, 0) for one in request_ids)
            await receiver.wait_for(len(wanted))
            assert sorted(one.webhook_id for one in receiver.got) == wanted
    finally:
        for worker in workers:
            worker.kill()


# --- read models


@pytest.mark.usefixtures("worker")
async def test_rebuild_restores_messages_and_sends_nothing(system: Settings, request_id: str) -> None:
    session = await Session.connect(system)
    try:
        async with Receiver((200, 429, 200), headers={"Retry-After": "25"}).listening() as receiver:
            done, waiting = f"{request_id}-done", f"{request_id}-waiting"
            await complete(system, created(done), completed(done, webhook_url=receiver.url))
            await settled(system, done)
            await complete(system, completed(waiting, webhook_url=receiver.url, time=utc_now()))
            deliveries = Deliveries(session, system.partitions)
            ids = [completion_id(one, 0) for one in (done, waiting)]

            async def are_recorded() -> bool:
                return all([(await deliveries.load(one)).attempts for one in ids])

            await eventually(are_recorded)
            before = [await deliveries.load(one) for one in ids]
            for table in ("webhook_deliveries", "webhook_due", "webhook_due_slots"):
                await session.execute_script(f"TRUNCATE {table}")
            assert (await deliveries.load(ids[0])).origin is None
            for one in (done, waiting):
                await rebuild_history(system, History(session), deliveries, one, lambda *_: None)
            after = [await deliveries.load(one) for one in ids]
            assert [(one.origin, one.attempts, one.due) for one in after] == [
                (one.origin, one.attempts, one.due) for one in before
            ]
            assert shown(await settled(system, waiting)) == [
                (1, 429, "http_429"), (2, 200, None), ("WebhookDelivered",)
            ]  # fmt: skip
            assert len(receiver.got) == 3
    finally:
        await session.close()
