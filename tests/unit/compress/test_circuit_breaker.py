"""Circuit breakers of image hosts: a dead host fails fast, a host that is back works, an outage fails nothing."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from infra.outbound.reasons import Reason
from streams.compress import circuit_breaker
from streams.compress.circuit_breaker import (
    FIRST_PAUSE,
    HOST_UNAVAILABLE,
    MAX_FAILURES,
    MAX_PAUSE,
    MIN_FAILING,
    OUTAGE_LIMIT,
    CircuitBreaker,
)
from streams.compress.fetch import Fetched, FetchFailed

Fetch = Callable[[], Awaitable[Fetched]]
DEAD = "dead.example:443"


class World:
    """Hosts that respond or not, on a clock of its own; a download that gets no response takes ``timeout`` seconds."""

    def __init__(self, timeout: float = 30.0) -> None:
        self.now = 1000.0
        self.dead = {DEAD}
        self.timeout = timeout
        self.downloads = 0
        self.breaker = CircuitBreaker(clock=lambda: self.now)

    def fetch(self, host: str, reason: str = Reason.TIMEOUT) -> Fetch:
        async def fetch() -> Fetched:
            self.downloads += 1
            await asyncio.sleep(0)
            if host in self.dead:
                self.now += self.timeout
                raise FetchFailed(reason, f"{host} sent nothing", transient=True)
            return Fetched(b"image", 1)

        return fetch

    async def result(self, host: str = DEAD, owner: str = "alice", reason: str = Reason.TIMEOUT) -> str:
        try:
            return (await self.breaker.download(owner, host, self.fetch(host, reason))).body.decode()
        except FetchFailed as failure:
            return failure.reason

    async def open_circuit(self) -> None:
        for _ in range(MAX_FAILURES):
            assert await self.result() == Reason.TIMEOUT
        assert self.breaker.is_open("alice", DEAD)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circuit_breaker, "OUTAGE_PROBE", 0.001)


async def test_dead_host_fails_fast_after_consecutive_failures() -> None:
    world = World()
    await world.open_circuit()
    results = [await world.result() for _ in range(1000)]
    assert set(results) == {HOST_UNAVAILABLE}
    assert world.downloads == MAX_FAILURES
    assert world.breaker.open_circuits == 1


async def test_detail_names_host_and_duration() -> None:
    world = World()
    await world.open_circuit()
    with pytest.raises(FetchFailed, match=r"dead\.example:443 has been unreachable for 240 s; retry later"):
        await world.breaker.download("alice", DEAD, world.fetch(DEAD))


@pytest.mark.parametrize("reason", [Reason.TIMEOUT, Reason.CONNECT_FAILED, Reason.DNS_FAILED])
async def test_every_kind_of_unreachability_counts(reason: Reason) -> None:
    world = World()
    for _ in range(MAX_FAILURES):
        assert await world.result(reason=reason) == reason
    assert await world.result(reason=reason) == HOST_UNAVAILABLE


async def test_response_resets_the_count() -> None:
    world = World()
    for _ in range(5):
        for _ in range(MAX_FAILURES - 1):
            await world.result()
        world.dead.clear()
        assert await world.result() == "image"
        world.dead.add(DEAD)
    assert not world.breaker.is_open("alice", DEAD)


@pytest.mark.parametrize("reason", ["fetch_http_404", "fetch_http_503", Reason.TLS_FAILED, Reason.INCOMPLETE])
async def test_error_response_closes_the_circuit(reason: str) -> None:
    world = World()
    await world.open_circuit()
    world.now += FIRST_PAUSE

    async def refuse() -> Fetched:
        raise FetchFailed(reason, "it answered", transient=True)

    with pytest.raises(FetchFailed, match=reason):
        await world.breaker.download("alice", DEAD, refuse)
    assert world.breaker.open_circuits == 0


async def test_short_interruption_opens_no_circuit() -> None:
    world = World(timeout=MIN_FAILING / 100)
    assert {await world.result(reason=Reason.CONNECT_FAILED) for _ in range(90)} == {Reason.CONNECT_FAILED}
    world.dead.clear()
    assert await world.result() == "image"


async def test_host_that_is_back_works_after_one_probe() -> None:
    world = World()
    await world.open_circuit()
    world.dead.clear()
    assert await world.result() == HOST_UNAVAILABLE
    world.now += FIRST_PAUSE
    assert [await world.result() for _ in range(20)] == ["image"] * 20
    assert world.breaker.open_circuits == 0


async def test_failed_probes_double_the_pause() -> None:
    world = World()
    await world.open_circuit()
    pauses = []
    for _ in range(6):
        opened = world.now
        while await world.result() == HOST_UNAVAILABLE:
            world.now += 1.0
        pauses.append(world.now - world.timeout - opened)
    assert pauses == [15, 30, 60, 120, 120, 120]
    assert pauses[-1] == MAX_PAUSE


async def test_one_probe_runs_at_a_time() -> None:
    world = World()
    await world.open_circuit()
    world.now += FIRST_PAUSE
    release = asyncio.Event()

    async def slow() -> Fetched:
        await release.wait()
        return Fetched(b"image", 1)

    probe = asyncio.create_task(world.breaker.download("alice", DEAD, slow))
    await asyncio.sleep(0)
    assert [await world.result() for _ in range(5)] == [HOST_UNAVAILABLE] * 5
    release.set()
    assert (await probe).body == b"image"


async def test_cancelled_probe_leaves_the_next_one() -> None:
    world = World()
    await world.open_circuit()
    world.now += FIRST_PAUSE
    probe = asyncio.create_task(world.breaker.download("alice", DEAD, lambda: asyncio.sleep(60, Fetched(b"", 0))))
    await asyncio.sleep(0)
    probe.cancel()
    await asyncio.gather(probe, return_exceptions=True)
    world.dead.clear()
    assert await world.result() == "image"


async def test_owner_cannot_open_the_circuit_of_another() -> None:
    world = World()
    await world.open_circuit()
    world.dead.clear()
    assert await world.result(owner="bob") == "image"


async def test_forbidden_urls_are_no_response() -> None:
    world = World()
    await world.open_circuit()
    world.now += FIRST_PAUSE

    async def redirected() -> Fetched:
        raise FetchFailed(Reason.FORBIDDEN_ADDRESS, "private")

    with pytest.raises(FetchFailed, match=Reason.FORBIDDEN_ADDRESS):
        await world.breaker.download("alice", DEAD, redirected)
    assert world.breaker.open_circuits == 1


async def test_images_wait_for_the_end_of_our_outage() -> None:
    world = World(timeout=1.0)
    hosts = [f"shop{number}.example:443" for number in range(5)]
    world.dead = set(hosts)
    images = [asyncio.create_task(world.result(host)) for host in hosts for _ in range(4)]
    while world.now < 1000 + OUTAGE_LIMIT / 2:  # noqa: ASYNC110 - the world's own clock, which the downloads move
        await asyncio.sleep(0.001)
    assert not any(image.done() for image in images)
    world.dead.clear()
    assert await asyncio.gather(*images) == ["image"] * 20
    assert world.breaker.open_circuits == 0


async def test_dead_hosts_fail_while_another_responds() -> None:
    world = World(timeout=10.0)
    dead = [f"dead{number}.example:443" for number in range(5)]
    world.dead = set(dead)
    for host in dead:
        failing = asyncio.create_task(world.result(host))
        await asyncio.sleep(0)
        assert await world.result("alive.example:443") == "image"
        assert await failing == Reason.TIMEOUT


async def test_waiting_for_an_outage_ends() -> None:
    world = World(timeout=10.0)
    hosts = [f"dead{number}.example:443" for number in range(3)]
    world.dead = set(hosts)
    async with asyncio.timeout(60):
        results = await asyncio.gather(*(world.result(host) for host in hosts))
    assert set(results) == {Reason.TIMEOUT}


async def test_remembered_hosts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circuit_breaker, "MAX_HOSTS", 10)
    world = World()
    for number in range(50):
        world.dead.add(f"{number}.example:443")
        await world.result(f"{number}.example:443")
        await world.result("alive.example:443")
    assert len(world.breaker._circuits) <= 10
