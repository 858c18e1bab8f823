"""DNS look-ups: a name server that doesn't answer delays nobody but those who ask for its names."""

import asyncio
import socket
import threading
from collections.abc import Iterator, Sequence

import pytest

from infra.outbound import names
from infra.outbound.budget import TimeBudget
from infra.outbound.names import Names, zone_of
from infra.outbound.reasons import OutboundError, Reason


class Tarpit:
    """A resolver whose look-ups of ``…tarpit…`` names block until ``opened``."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.asked: list[str] = []

    def __call__(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        if "tarpit" in host:
            self.opened.wait(50)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return ["192.0.2.1"]


@pytest.fixture
def tarpit() -> Iterator[Tarpit]:
    resolver = Tarpit()
    yield resolver
    resolver.opened.set()


async def all_ended(tasks: Sequence[asyncio.Task[Sequence[str]]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def stuck(resolver: Names, hosts: Sequence[str], owner: str = "") -> list[asyncio.Task[Sequence[str]]]:
    return [asyncio.create_task(resolver.resolve(host, owner, TimeBudget(50))) for host in hosts]


@pytest.mark.parametrize("zones", ["h{}.tarpit.example", "tarpit{}.example", "a.tarpit{}.co.uk"])
async def test_slow_name_servers_delay_no_other_host(tarpit: Tarpit, zones: str) -> None:
    resolver = Names(tarpit)
    tasks = stuck(resolver, [zones.format(number) for number in range(100)])
    await asyncio.sleep(0)
    assert await resolver.resolve("good.example", "", TimeBudget(5)) == ["192.0.2.1"]
    await all_ended(tasks)


async def test_owner_with_many_slow_zones_leaves_threads_to_others(tarpit: Tarpit) -> None:
    resolver = Names(tarpit)
    tasks = stuck(resolver, [f"tarpit{number}.example" for number in range(2 * names.THREADS)], "alice")
    await asyncio.sleep(0)
    assert await resolver.resolve("good.example", "bob", TimeBudget(5)) == ["192.0.2.1"]
    assert len(tarpit.asked) <= names.THREADS_PER_OWNER + 1
    await all_ended(tasks)


async def test_zone_that_one_owner_holds_up_answers_another(tarpit: Tarpit) -> None:
    resolver = Names(tarpit)
    tasks = stuck(resolver, [f"tarpit{number}.shared.example" for number in range(20)], "alice")
    tasks += stuck(resolver, ["good.shared.example"], "alice")  # waits behind hers
    await asyncio.sleep(0)
    assert await resolver.resolve("good.shared.example", "bob", TimeBudget(5)) == ["192.0.2.1"]
    await all_ended(tasks)


async def test_waiting_for_a_thread_costs_no_budget(tarpit: Tarpit) -> None:
    resolver = Names(tarpit)
    tasks = stuck(resolver, [f"tarpit{number}.example.com" for number in range(names.THREADS_PER_ZONE)])
    await asyncio.sleep(0)
    budget = TimeBudget(0.2)

    async def resolve() -> Sequence[str]:
        async with budget.enforced():
            return await resolver.resolve("good.example.com", "", budget)

    waiting = asyncio.create_task(resolve())
    done, _ = await asyncio.wait([waiting], timeout=0.5)  # longer than the budget
    assert not done
    tarpit.opened.set()
    assert await waiting == ["192.0.2.1"]
    assert budget.remaining > 0
    await all_ended(tasks)


async def test_timeout_is_transient_error(tarpit: Tarpit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "LOOK_UP_TIMEOUT", 0.05)
    with pytest.raises(OutboundError) as caught:
        await Names(tarpit).resolve("tarpit.example", "", TimeBudget(50))
    assert caught.value.reason == Reason.DNS_FAILED
    assert caught.value.retryable


async def test_wait_for_a_thread_ends(tarpit: Tarpit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "MAX_WAIT", 0.05)
    resolver = Names(tarpit)
    tasks = stuck(resolver, [f"tarpit{number}.example.com" for number in range(names.THREADS_PER_ZONE)])
    await asyncio.sleep(0)
    with pytest.raises(OutboundError) as caught:
        await resolver.resolve("good.example.com", "", TimeBudget(50))
    assert caught.value.reason == Reason.DNS_FAILED
    tarpit.opened.set()
    await all_ended(tasks)
    assert "good.example.com" not in tarpit.asked  # nobody waits for it any more


async def test_lookups_of_one_name_are_one(tarpit: Tarpit) -> None:
    resolver = Names(tarpit)
    for _ in range(2):
        await asyncio.gather(*(resolver.resolve("good.example", "", TimeBudget(5)) for _ in range(5)))
    assert tarpit.asked == ["good.example"]


async def test_cache_is_bounded(tarpit: Tarpit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "MAX_CACHED", 2)
    resolver = Names(tarpit)
    for host in ("a.example", "b.example", "c.example", "c.example", "a.example"):
        await resolver.resolve(host, "", TimeBudget(5))
    assert tarpit.asked == ["a.example", "b.example", "c.example", "a.example"]


@pytest.mark.parametrize(
    ("host", "zone"),
    [
        ("shop.example", "shop.example"),
        ("a.b.shop.example.", "shop.example"),
        ("img.shop.co.uk", "shop.co.uk"),
        ("co.uk", "co.uk"),
        ("minio", "minio"),
    ],
)
def test_zone_is_the_domain_under_the_public_suffix(host: str, zone: str) -> None:
    assert zone_of(host) == zone
