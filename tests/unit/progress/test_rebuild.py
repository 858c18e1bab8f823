"""Long reading ends when a rebalance can't wait for it, and with whoever waits for it."""

import asyncio

import pytest

from streams.progress.rebuild import unless_interrupted


class Reading:
    """Lasts until it is let go, and remembers that it was cancelled."""

    def __init__(self) -> None:
        self.let_go = asyncio.Event()
        self.began = asyncio.Event()
        self.cancelled = False

    async def __call__(self, error: Exception | None = None) -> str:
        self.began.set()
        try:
            await self.let_go.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if error is not None:
            raise error
        return "read"


async def test_uninterrupted_work_has_its_result_or_error() -> None:
    reading = Reading()
    reading.let_go.set()
    assert await unless_interrupted(reading(), lambda: False) == "read"
    with pytest.raises(OSError, match="no broker"):
        await unless_interrupted(reading(OSError("no broker")), lambda: True)


async def test_reading_ends_without_a_result_once_it_is_interrupted() -> None:
    reading = Reading()
    assert await unless_interrupted(reading(), lambda: True) is None
    assert reading.cancelled


async def test_reading_ends_with_the_one_who_waits_for_it() -> None:
    reading = Reading()
    waiting = asyncio.create_task(unless_interrupted(reading(), lambda: False))
    await reading.began.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.sleep(0)
    assert reading.cancelled
