"""Cancellations of our own, told apart from stray ones."""

import asyncio

import pytest

from infra.cancellation import StrayCancellationError, cancel_and_wait, no_stray_cancellation, run_beside
from tests.event_loop import run


async def cancelled_library_task() -> None:
    """Raises what a library does that awaits a task of its own after cancelling it before its first step."""
    task = asyncio.create_task(asyncio.sleep(60))
    task.cancel()
    await task


def test_stray_cancellation_becomes_an_error() -> None:
    async def test() -> None:
        with pytest.raises(StrayCancellationError, match="nobody sent"), no_stray_cancellation():
            await cancelled_library_task()

    run(test())


def test_own_cancellation_stays_a_cancellation() -> None:
    async def test() -> None:
        async def wait() -> None:
            with no_stray_cancellation():
                await asyncio.sleep(60)

        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        await cancel_and_wait(waiting)
        assert waiting.cancelled()

    run(test())


def test_timeout_within_is_no_stray_cancellation() -> None:
    async def test() -> None:
        with pytest.raises(TimeoutError), no_stray_cancellation():
            async with asyncio.timeout(0):
                await asyncio.sleep(60)

    run(test())


def test_failure_beside_is_reported_and_cancellation_is_not() -> None:
    async def test() -> None:
        failures: list[BaseException] = []
        failing = run_beside(cancelled_library_task(), name="failing", on_failure=failures.append)
        await failing
        assert [type(failure) for failure in failures] == [StrayCancellationError]
        endless = run_beside(asyncio.sleep(60), name="endless", on_failure=failures.append)
        await asyncio.sleep(0)
        await cancel_and_wait(endless)
        assert endless.cancelled()
        assert len(failures) == 1

    run(test())
