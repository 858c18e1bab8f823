"""Cancellations of our own, told apart from stray ones."""

import asyncio

import pytest

from infra.cancellation import (
    StrayCancellationError,
    cancel_and_wait,
    no_stray_cancellation,
    run_in_background,
    run_to_end,
)


async def cancelled_library_task() -> None:
    """Raises what a library does that awaits a task of its own after cancelling it before its first step."""
    task = asyncio.create_task(asyncio.sleep(60))
    task.cancel()
    await task


async def test_stray_cancellation_becomes_an_error() -> None:
    with pytest.raises(StrayCancellationError, match="stray CancelledError"), no_stray_cancellation():
        await cancelled_library_task()


async def test_own_cancellation_stays_a_cancellation() -> None:
    async def wait() -> None:
        with no_stray_cancellation():
            await asyncio.sleep(60)

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    await cancel_and_wait(waiting)
    assert waiting.cancelled()


async def test_timeout_within_is_no_stray_cancellation() -> None:
    with pytest.raises(TimeoutError), no_stray_cancellation():
        async with asyncio.timeout(0):
            await asyncio.sleep(60)


async def test_failure_beside_is_reported_and_cancellation_is_not() -> None:
    failures: list[BaseException] = []
    failing = run_in_background(cancelled_library_task(), name="failing", on_failure=failures.append)
    await failing
    assert [type(failure) for failure in failures] == [StrayCancellationError]
    endless = run_in_background(asyncio.sleep(60), name="endless", on_failure=failures.append)
    await asyncio.sleep(0)
    await cancel_and_wait(endless)
    assert endless.cancelled()
    assert len(failures) == 1


async def test_cancelled_caller_waits_for_the_end() -> None:
    begun, may_end, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        await may_end.wait()
        ended.set()

    caller = asyncio.create_task(run_to_end(work(), 60))
    await begun.wait()
    caller.cancel()
    await asyncio.sleep(0)
    assert not caller.done()
    may_end.set()
    await asyncio.wait({caller})
    assert ended.is_set()
    assert caller.cancelled()


async def test_work_without_end_times_out() -> None:
    with pytest.raises(TimeoutError):
        await run_to_end(asyncio.sleep(60), 0.01)
