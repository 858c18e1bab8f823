"""Fair shares of uploads, event streams, readings of logs, connections, and the log itself."""

import asyncio
import resource
from contextlib import ExitStack

import pytest
from aiohttp import web
from pydantic import SecretStr

from api.http.problems import Problem, ProblemCode, unavailable
from api.http.protocol_errors import ProblemRunner
from api.http.quotas import ConcurrencyLimit, DailyQuota, Turns, connection_limit, raise_file_limit, share_of
from infra.settings import Settings
from tests.support.waiting import eventually

TWO_KEYS = Settings(api_keys=SecretStr("alice:a,bob:b"), max_images_per_day=1000, max_upload_bytes_per_day=500)


async def _is(condition: bool) -> bool:
    return condition


def refused(slots: ConcurrencyLimit, client: str) -> bool:
    try:
        with slots.take(client):
            return False
    except Problem as problem:
        return problem.status == 503


def test_owner_has_a_quarter_unless_alone() -> None:
    assert [share_of(limit, TWO_KEYS) for limit in (1000, 5, 2, 1, 0)] == [250, 1, 1, 1, 0]
    assert share_of(1000, Settings(api_keys=SecretStr("alice:a"))) == share_of(1000, Settings()) == 1000


def test_one_client_leaves_slots_to_others() -> None:
    slots = ConcurrencyLimit(8, 2, unavailable)
    with ExitStack() as held:
        for client in ("alice", "alice", "bob"):
            held.enter_context(slots.take(client))
        assert refused(slots, "alice")
        assert not refused(slots, "bob")
        for client in ("bob", "carol", "carol", "dave", "dave"):
            held.enter_context(slots.take(client))
        assert slots.taken == 8
        assert refused(slots, "erin")
    assert slots.taken == 0
    assert not refused(slots, "alice")


async def test_flood_of_readings_does_not_delay_another_owner() -> None:
    turns = Turns(2, 1, ConcurrencyLimit(2**31, 16, unavailable))
    order: list[str] = []
    free = asyncio.Event()

    async def read(owner: str) -> None:
        async with turns.turn(owner):
            order.append(owner)
            await free.wait()

    flood = [asyncio.create_task(read("alice")) for _ in range(200)]
    await asyncio.sleep(0)
    other = asyncio.create_task(read("bob"))
    async with asyncio.timeout(60):
        await eventually(lambda: _is(order == ["alice", "bob"]))
        free.set()
        results = await asyncio.gather(*flood, other, return_exceptions=True)
    assert sum(isinstance(result, Problem) for result in results) == 200 - 16
    assert order.count("alice") == 16
    assert turns._owners == {}


def test_daily_quota_is_refused_with_an_honest_retry_after() -> None:
    quota = DailyQuota(TWO_KEYS)
    with quota.spend("alice", 900, 100):
        pass
    with pytest.raises(Problem) as refusal, quota.spend("alice", 200):
        pass
    assert (refusal.value.code, refusal.value.status) == (ProblemCode.QUOTA_EXCEEDED.code, 429)
    # 100 of 1,000 images a day are missing.
    assert 8630 <= int(refusal.value.headers["Retry-After"]) <= 8640
    with quota.spend("bob", 1000, 500), pytest.raises(Problem), quota.spend("bob", 0, 1):
        pass


def test_failed_upload_is_not_charged() -> None:
    quota = DailyQuota(TWO_KEYS)
    for _ in range(3):
        with pytest.raises(ConnectionError), quota.spend("alice", 1000, 500):
            raise ConnectionError
        with pytest.raises(Problem), quota.spend("alice", 1000, 500), quota.spend("alice", 1):
            pass
    with quota.spend("alice", 1000, 500):
        pass


def test_upload_beyond_a_whole_day_needs_a_full_quota() -> None:
    quota = DailyQuota(TWO_KEYS)
    with quota.spend("alice", 5000):
        pass
    with pytest.raises(Problem) as refusal, quota.spend("alice", 1):
        pass
    assert int(refusal.value.headers["Retry-After"]) > 4 * 86_400 - 10


def test_quota_of_zero_is_unlimited() -> None:
    quota = DailyQuota(Settings(max_images_per_day=0, max_upload_bytes_per_day=0))
    for _ in range(3):
        with quota.spend("", 10**9, 10**15):
            pass


def test_file_limit_is_raised_and_connections_stay_below_it(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"now": (256, 1024)}
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits["now"])
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: limits.update(now=wanted))
    assert raise_file_limit() == 1024
    assert limits["now"] == (1024, 1024)
    limits["now"] = (1024, resource.RLIM_INFINITY)
    assert raise_file_limit() == 2**20
    for file_limit, most, of_one in ((1024, 512, 128), (2**20, 20_000, 5_000), (4096, 3584, 896)):
        slots = connection_limit(file_limit)
        assert (slots._limit, slots._share) == (most, of_one)


async def test_idle_connections_of_one_address_are_bounded() -> None:
    app = web.Application()
    app.add_routes([web.get("/", _ok)])
    runner = ProblemRunner(app, ConcurrencyLimit(9, 2, unavailable), shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0]

    async def answer() -> bytes:
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return await reader.read()
        except ConnectionResetError:
            return b""
        finally:
            writer.close()

    async def is_answered() -> bool:
        return (await answer()).startswith(b"HTTP/1.1 200 ")

    try:
        async with asyncio.timeout(60):
            idle = [await asyncio.open_connection(host, port) for _ in range(3)]
            refusal = await idle[2][0].read()
            assert refusal.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            assert b"Retry-After: 2\r\n" in refusal
            assert b"urn:shrinkstream:problem:unavailable" in refusal
            assert not await is_answered()
            idle[0][1].close()
            await eventually(is_answered)
    finally:
        for _, writer in idle:
            writer.close()
        await runner.cleanup()


async def _ok(_: web.Request) -> web.Response:
    return web.Response()
