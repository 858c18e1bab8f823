"""Slots go fairly to owners, lanes, hosts and requests."""

import asyncio
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.compress.fair_slots import FairSlots, Group, slots_with_a_spare

ALICE: Group = ("alice", False)
BOB: Group = ("bob", False)
BULK: Group = ("", True)
EXPRESS: Group = ("", False)


class Load:
    """Tasks that take a slot and hold it until they are released."""

    def __init__(self, slots: FairSlots) -> None:
        self._slots = slots
        self.started: list[str] = []
        self.leave_host: dict[str, Callable[[], None]] = {}
        self._ends: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, name: str, group: Group, host: str = "host", request: str = "request") -> None:
        self._ends[name] = asyncio.Event()

        async def hold() -> None:
            async with self._slots.slot(group, host, request) as self.leave_host[name]:
                self.started.append(name)
                await self._ends[name].wait()

        self._tasks[name] = asyncio.create_task(hold())
        await asyncio.sleep(0)

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await self._tasks[name]
        await asyncio.sleep(0)

    async def cancel(self, name: str) -> None:
        self._tasks[name].cancel()
        await asyncio.gather(self._tasks[name], return_exceptions=True)


async def test_slow_host_leaves_slots_to_others() -> None:
    load = Load(FairSlots(64, per_host=8))
    for number in range(300):
        await load.ask(f"tarpit {number}", ALICE, host="tarpit:80")
    await load.ask("fast", BOB, host="fast:80")
    assert len(load.started) == 9
    assert load.started[-1] == "fast"


async def test_one_owner_never_takes_all_slots() -> None:
    load = Load(FairSlots(16, per_host=8))
    for number in range(100):
        await load.ask(f"slow {number}", ALICE, host=f"slow{number}:80")
    assert len(load.started) == 12
    for number in range(3):
        await load.ask(f"bob {number}", BOB, host="fast:80")
    assert load.started[12:] == ["bob 0", "bob 1", "bob 2"]


async def test_task_that_left_its_host_lets_others_in() -> None:
    load = Load(FairSlots(16, per_host=2))
    for number in range(4):
        await load.ask(f"alice {number}", ALICE)
    await load.ask("bob", BOB)
    assert load.started == ["alice 0", "alice 1"]
    for _ in range(2):  # leaving twice is leaving once
        load.leave_host["alice 0"]()
    await asyncio.sleep(0)
    assert load.started == ["alice 0", "alice 1", "bob"]
    await load.end("alice 0")
    assert load.started == ["alice 0", "alice 1", "bob"], "the host still has two"
    await load.end("bob")
    assert load.started[3:] == ["alice 2"]


@pytest.mark.parametrize("limit", [1, 2, 3, 8, 64])
async def test_spare_slot_is_free_for_the_next_owner(limit: int) -> None:
    load = Load(slots_with_a_spare(limit))
    for number in range(100):
        await load.ask(f"hostile {number}", ALICE)
    assert len(load.started) == limit
    await load.ask("honest", BOB)
    assert load.started[-1] == "honest"


async def test_bulk_requests_leave_slots_to_express_ones() -> None:
    load = Load(FairSlots(8, per_host=8))
    for number in range(100):
        await load.ask(f"bulk {number}", BULK, host=f"{number}:80")
    await load.ask("express", EXPRESS)
    assert load.started == [*(f"bulk {number}" for number in range(6)), "express"]


async def test_free_slot_goes_to_the_owner_with_fewest() -> None:
    load = Load(FairSlots(4, share=1.0))
    for number in range(6):
        await load.ask(f"alice {number}", ALICE)
    for number in range(6):
        await load.ask(f"bob {number}", BOB)
    for name in ("alice 0", "alice 1", "alice 2"):
        await load.end(name)
    assert load.started[4:] == ["bob 0", "bob 1", "alice 4"]


async def test_small_request_overtakes_a_large_one_at_its_host() -> None:
    load = Load(FairSlots(8, per_host=1))
    for number in range(50):
        await load.ask(f"large {number}", EXPRESS, request="large")
    await load.ask("small", EXPRESS, request="small")
    await load.end("large 0")
    await load.end(load.started[-1])
    assert "small" in load.started[:3]


async def test_exempt_host_has_no_limit() -> None:
    load = Load(FairSlots(100, per_host=1, share=1.0, is_exempt=lambda group, host: host == "dead:80"))
    for number in range(20):
        await load.ask(f"dead {number}", EXPRESS, host="dead:80")
        await load.ask(f"alive {number}", EXPRESS, host="alive:80")
    assert len(load.started) == 21


async def test_cancelled_tasks_leave_nothing_behind() -> None:
    slots = FairSlots(2, per_host=1)
    load = Load(slots)
    for name in ("holds", "waits", "is next"):
        await load.ask(name, EXPRESS)
    await load.cancel("waits")
    await load.cancel("holds")
    await asyncio.sleep(0)
    assert load.started == ["holds", "is next"]
    await load.end("is next")
    assert (slots.taken, slots.waiting, slots._waiting, slots._hosts, slots._groups) == (0, 0, {}, {}, {})


async def test_turn_is_not_lost_when_its_task_is_cancelled() -> None:
    slots = FairSlots(1)
    load = Load(slots)
    for name in ("first", "second", "third"):
        await load.ask(name, EXPRESS)
    load._tasks["second"].cancel()  # and before it runs, its turn comes
    await load.end("first")
    assert load.started == ["first", "third"]
    await load.end("third")
    assert slots.taken == slots.waiting == 0


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.integers(0, 3)), max_size=40), st.integers())
def test_limits_hold_and_every_task_ends(tasks: list[tuple[str, int, int]], seed: int) -> None:
    slots = FairSlots(6, per_host=2)
    chance = random.Random(seed)
    running: list[int] = []

    async def work(owner: str, host: int, request: int) -> None:
        async with slots.slot((owner, False), str(host), str(request)):
            running.append(host)
            try:
                assert len(running) <= 6
                assert running.count(host) <= 2
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)
            finally:
                running.remove(host)

    async def main() -> None:
        async with asyncio.timeout(60):
            jobs = [asyncio.create_task(work(*task)) for task in tasks]
            for job in jobs:
                await asyncio.sleep(0)
                if chance.random() < 0.2:
                    job.cancel()
            for outcome in await asyncio.gather(*jobs, return_exceptions=True):
                assert outcome is None or isinstance(outcome, asyncio.CancelledError)

    asyncio.run(main())
    assert (slots.taken, slots.waiting, slots._waiting) == (0, 0, {})
