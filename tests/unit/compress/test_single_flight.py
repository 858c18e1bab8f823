"""Single flight: one execution per key, failures not cached."""

import asyncio

import pytest

from streams.compress.single_flight import SingleFlight


class Work:
    """Counts its executions; ends when ``let_go`` is set."""

    def __init__(self, *outcomes: str | Exception) -> None:
        self.outcomes = list(outcomes)
        self.done = 0
        self.let_go = asyncio.Event()
        self.let_go.set()

    async def __call__(self) -> str:
        self.done += 1
        outcome = self.outcomes.pop(0)
        await asyncio.sleep(0)
        await self.let_go.wait()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


async def test_concurrent_callers_share_one_result() -> None:
    flight: SingleFlight[str, str] = SingleFlight(0, 10)
    work = Work("image")
    results = await asyncio.gather(*(flight.get("url", work) for _ in range(5)))
    assert results == [("image", True)] + [("image", False)] * 4
    assert work.done == 1


async def test_cached_result_expires() -> None:
    now = 0.0
    flight: SingleFlight[str, str] = SingleFlight(60, 10, clock=lambda: now)
    work = Work("old", "new")
    assert await flight.get("url", work) == ("old", True)
    now = 59.0
    assert await flight.get("url", work) == ("old", False)
    now = 60.0
    assert await flight.get("url", work) == ("new", True)


async def test_each_key_has_its_own_execution() -> None:
    flight: SingleFlight[tuple[str, int], str] = SingleFlight(60, 10)
    work = Work("small", "large")
    assert await flight.get(("url", 50), work) == ("small", True)
    assert await flight.get(("url", 90), work) == ("large", True)


async def test_failure_is_shared_and_not_cached() -> None:
    flight: SingleFlight[str, str] = SingleFlight(60, 10)
    work = Work(OSError("broken"), "image")
    outcomes = await asyncio.gather(*(flight.get("url", work) for _ in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [OSError] * 3
    assert await flight.get("url", work) == ("image", True)


async def test_waiting_caller_replaces_a_cancelled_one() -> None:
    flight: SingleFlight[str, str] = SingleFlight(60, 10)
    work = Work("lost", "image")
    work.let_go.clear()
    first = asyncio.create_task(flight.get("url", work))
    await asyncio.sleep(0)
    second = asyncio.create_task(flight.get("url", work))
    await asyncio.sleep(0)
    first.cancel()
    work.let_go.set()
    assert await second == ("image", True)
    assert work.done == 2


async def test_cancelled_callers_start_nothing() -> None:
    flight: SingleFlight[str, str] = SingleFlight(60, 10)
    work = Work("lost", "not wanted")
    work.let_go.clear()
    tasks = [asyncio.create_task(flight.get("url", work)) for _ in range(5)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    async with asyncio.timeout(60):
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 5
    assert work.done == 1


async def test_waiting_caller_is_cancelled_alone() -> None:
    flight: SingleFlight[str, str] = SingleFlight(60, 10)
    work = Work("image")
    work.let_go.clear()
    first, second = (asyncio.create_task(flight.get("url", work)) for _ in range(2))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    work.let_go.set()
    assert await first == ("image", True)


async def test_cache_is_bounded() -> None:
    flight: SingleFlight[int, str] = SingleFlight(60, 10)
    for number in range(100):
        await flight.get(number, Work("image"))
    assert len(flight) == 10
