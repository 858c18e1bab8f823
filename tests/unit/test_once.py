"""The same work is done once, and nobody pays for another's failure longer than it lasts."""

import asyncio

import pytest

from streams.compress.single_flight import Once


class Work:
    """Counts how often it is done; lasts until it is let go."""

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


async def test_those_who_come_at_the_same_time_share_one_result() -> None:
    once: Once[str, str] = Once(0, 10)
    work = Work("image")
    results = await asyncio.gather(*(once.get("url", work) for _ in range(5)))
    assert results == [("image", True)] + [("image", False)] * 4
    assert work.done == 1


async def test_a_result_is_remembered_for_its_time_and_no_longer() -> None:
    now = 0.0
    once: Once[str, str] = Once(60, 10, clock=lambda: now)
    work = Work("old", "new")
    assert await once.get("url", work) == ("old", True)
    now = 59.0
    assert await once.get("url", work) == ("old", False)
    now = 60.0
    assert await once.get("url", work) == ("new", True)


async def test_other_keys_are_other_work() -> None:
    once: Once[tuple[str, int], str] = Once(60, 10)
    work = Work("small", "large")
    assert await once.get(("url", 50), work) == ("small", True)
    assert await once.get(("url", 90), work) == ("large", True)


async def test_a_failure_is_shared_by_those_who_wait_and_then_forgotten() -> None:
    once: Once[str, str] = Once(60, 10)
    work = Work(OSError("broken"), "image")
    outcomes = await asyncio.gather(*(once.get("url", work) for _ in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [OSError] * 3
    assert await once.get("url", work) == ("image", True)


async def test_when_the_one_at_work_is_cancelled_another_goes_on() -> None:
    once: Once[str, str] = Once(60, 10)
    work = Work("lost", "image")
    work.let_go.clear()
    first = asyncio.create_task(once.get("url", work))
    await asyncio.sleep(0)
    second = asyncio.create_task(once.get("url", work))
    await asyncio.sleep(0)
    first.cancel()
    work.let_go.set()
    assert await second == ("image", True)
    assert work.done == 2


async def test_when_all_are_cancelled_together_nobody_goes_on() -> None:
    once: Once[str, str] = Once(60, 10)
    work = Work("lost", "not wanted")
    work.let_go.clear()
    tasks = [asyncio.create_task(once.get("url", work)) for _ in range(5)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 5
    assert work.done == 1


async def test_one_who_waits_can_be_cancelled_alone() -> None:
    once: Once[str, str] = Once(60, 10)
    work = Work("image")
    work.let_go.clear()
    first, second = (asyncio.create_task(once.get("url", work)) for _ in range(2))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    work.let_go.set()
    assert await first == ("image", True)


async def test_only_so_many_results_are_remembered() -> None:
    once: Once[int, str] = Once(60, 10)
    for number in range(100):
        await once.get(number, Work("image"))
    assert len(once) == 10
