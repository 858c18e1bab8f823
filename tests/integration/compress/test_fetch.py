"""Downloads with retries, against a real server on loopback; only the pauses between attempts are not waited for."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, NamedTuple

import pytest
from aiohttp import web
from aiohttp.test_utils import BaseTestServer, TestServer
from hypothesis import given
from hypothesis import strategies as st

from infra.outbound.addresses import AllowList
from infra.outbound.client import OutboundClient
from infra.outbound.reasons import Reason
from streams.compress.fetch import MAX_PAUSE, Fetched, FetchFailed, fetch, pause_after

LOOPBACK = AllowList.parse("127.0.0.1")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Pauses(list[float]):
    """Takes the place of sleep(), and remembers how long it was asked for."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[BaseTestServer]:
    app = web.Application()
    app.router.add_get("/{path:.*}", handler)
    async with TestServer(app, host="127.0.0.1") as server:
        yield server


class Step(NamedTuple):
    """What a server does with one request: answer, break off after the head, or hang up at once."""

    status: int = 200
    headers: Mapping[str, str] = {}
    breaks: bool = False
    hangs_up: bool = False


OK = Step()
BREAK = Step(breaks=True)
HANG_UP = Step(hangs_up=True)


class Script:
    """Does with each request the next of its steps, the last one for ever."""

    def __init__(self, *steps: Step) -> None:
        self._steps = steps
        self.requests = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        step = self._steps[min(self.requests, len(self._steps) - 1)]
        self.requests += 1
        assert request.transport is not None
        if step.hangs_up:
            request.transport.abort()
        response = web.StreamResponse(status=step.status, headers={"Content-Length": "6", **step.headers})
        if not step.hangs_up:
            await response.prepare(request)
        if step.breaks:
            await response.write(b"pix")
            request.transport.close()
        elif not step.hangs_up:
            await response.write(b"pixels")
        return response


async def download(script: Script, pauses: Pauses, *, timeout: float = 20, attempts: int = 3) -> Fetched:
    async with serving(script.answer) as server, OutboundClient(LOOPBACK) as client:
        return await fetch(
            client,
            str(server.make_url("/a.jpg")),
            max_bytes=1000,
            timeout=timeout,
            attempts=attempts,
            sleep=pauses,
            jitter=lambda: 0.5,
        )


async def failure(script: Script, pauses: Pauses, **options: Any) -> FetchFailed:
    with pytest.raises(FetchFailed) as caught:
        await download(script, pauses, **options)
    return caught.value


async def test_success_is_returned_after_one_attempt() -> None:
    script, pauses = Script(OK), Pauses()
    fetched = await download(script, pauses)
    assert fetched.body == b"pixels"
    assert fetched.milliseconds >= 0
    assert (script.requests, pauses) == (1, [])


@pytest.mark.parametrize("trouble", [BREAK, Step(429), Step(500), Step(502), Step(503), Step(504)])
async def test_transient_error_is_retried(trouble: Step) -> None:
    script, pauses = Script(trouble, trouble, OK), Pauses()
    assert (await download(script, pauses)).body == b"pixels"
    assert script.requests == 3
    assert pauses == [0.25, 0.5]


@pytest.mark.parametrize(("trouble", "reason"), [(BREAK, "fetch_incomplete"), (Step(503), "fetch_http_503")])
async def test_lasting_error_ends_after_the_last_attempt(trouble: Step, reason: str) -> None:
    script, pauses = Script(trouble), Pauses()
    error = await failure(script, pauses, attempts=4)
    assert error.reason == reason
    assert script.requests == 4
    assert len(pauses) == 3


async def test_reset_connection_is_retried() -> None:
    script, pauses = Script(HANG_UP, HANG_UP, OK), Pauses()
    assert (await download(script, pauses)).body == b"pixels"
    assert script.requests == 3
    assert pauses == [0.25, 0.5]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 501])
async def test_permanent_status_is_not_retried(status: int) -> None:
    script, pauses = Script(Step(status), OK), Pauses()
    assert (await failure(script, pauses)).reason == f"fetch_http_{status}"
    assert (script.requests, pauses) == (1, [])


async def test_retry_after_in_seconds_is_respected() -> None:
    script, pauses = Script(Step(503, {"Retry-After": "7"}), OK), Pauses()
    assert (await download(script, pauses)).body == b"pixels"
    assert pauses == [7.25]


async def test_retry_after_as_a_date_is_respected() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=10), usegmt=True)
    script, pauses = Script(Step(429, {"Retry-After": date}), OK), Pauses()
    assert (await download(script, pauses, timeout=25)).body == b"pixels"
    (pause,) = pauses
    assert 5 < pause <= 10.25


async def test_retry_after_beyond_the_deadline_fails_at_once() -> None:
    script, pauses = Script(Step(503, {"Retry-After": "21"}), OK), Pauses()
    assert (await failure(script, pauses, timeout=20)).reason == "fetch_http_503"
    assert (script.requests, pauses) == (1, [])


async def test_backoff_counts_as_download_time() -> None:
    async with serving(Script(Step(503), OK).answer) as server, OutboundClient(LOOPBACK) as client:
        url = str(server.make_url("/a.jpg"))
        fetched = await fetch(client, url, max_bytes=1000, timeout=20, jitter=lambda: 0.2)
    assert fetched.milliseconds >= 100


async def test_attempts_share_one_deadline() -> None:
    async def answer(_: web.Request) -> web.Response:
        await asyncio.sleep(0.2)
        return web.Response(status=503)

    async with serving(answer) as server, OutboundClient(LOOPBACK) as client:
        url = str(server.make_url("/a.jpg"))
        with pytest.raises(FetchFailed) as caught:
            await fetch(
                client,
                url,
                max_bytes=1000,
                timeout=0.7,
                attempts=1000,
                sleep=Pauses(),
                jitter=lambda: 0.0,
            )
    assert caught.value.reason == Reason.TIMEOUT


async def test_stalled_attempt_is_retried_within_the_deadline() -> None:
    requests = 0

    async def answer(_: web.Request) -> web.Response:
        nonlocal requests
        requests += 1
        if requests == 1:
            await asyncio.sleep(20)
        return web.Response(body=b"pixels")

    async with serving(answer) as server, OutboundClient(LOOPBACK, stall_timeout=0.2) as client:
        url = str(server.make_url("/"))
        fetched = await fetch(client, url, max_bytes=10, timeout=20, sleep=Pauses())
    assert fetched.body == b"pixels"
    assert requests == 2


@pytest.mark.parametrize("status", [200, 204])
async def test_empty_body_is_a_failure(status: int) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status)

    with pytest.raises(FetchFailed) as caught:
        async with serving(answer) as server, OutboundClient(LOOPBACK) as client:
            await fetch(client, str(server.make_url("/")), max_bytes=10, timeout=10)
    assert caught.value.reason == "fetch_empty"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("not a url", "fetch_bad_url"),
        ("ftp://images.test/a.jpg", "fetch_forbidden_scheme"),
        ("http://169.254.169.254/", "fetch_forbidden_address"),
        ("http://images.test:22/", "fetch_forbidden_port"),
    ],
)
async def test_forbidden_url_is_a_failure(url: str, reason: str) -> None:
    with pytest.raises(FetchFailed) as caught:
        async with OutboundClient(AllowList()) as client:
            await fetch(client, url, max_bytes=10, timeout=10)
    assert caught.value.reason == reason
    assert caught.value.detail


async def test_too_large_image_is_not_retried() -> None:
    requests = 0

    async def answer(_: web.Request) -> web.Response:
        nonlocal requests
        requests += 1
        return web.Response(body=b"a" * 1001)

    with pytest.raises(FetchFailed) as caught:
        async with serving(answer) as server, OutboundClient(LOOPBACK) as client:
            await fetch(client, str(server.make_url("/")), max_bytes=1000, timeout=10)
    assert caught.value.reason == "too_large"
    assert requests == 1


# --- pauses ---


@given(st.integers(1, 1000), st.floats(0, 1, exclude_max=True), st.none() | st.floats(0, 86400))
def test_backoff_is_jittered_bounded_and_at_least_retry_after(
    attempt: int, jitter: float, retry_after: float | None
) -> None:
    asked = retry_after or 0.0
    assert asked <= pause_after(attempt, retry_after, jitter) <= asked + MAX_PAUSE


def test_backoff_grows_to_its_maximum() -> None:
    longest = [pause_after(attempt, None, 1.0) for attempt in range(1, 7)]
    assert longest == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0]
