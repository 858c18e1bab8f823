"""Guard against stray cancellations.

A library's CancelledError can reach a task that was not cancelled: aiokafka's ``stop()`` raises the one of an internal
task. Propagated, it would end our task silently, as if it had been cancelled.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")

GRACE = 5.0
"""Seconds that a cancellation waits for work that must not be cut off."""


class StrayCancellationError(Exception):
    """A CancelledError reached a task that was not cancelled."""


@contextmanager
def no_stray_cancellation() -> Iterator[None]:
    """Raise StrayCancellationError in place of a CancelledError unless the current task was cancelled."""
    try:
        yield
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise StrayCancellationError(f"stray CancelledError in task {task.get_name()}") from error


def run_in_background(
    work: Coroutine[Any, Any, None], *, name: str, on_failure: Callable[[BaseException], None]
) -> "asyncio.Task[None]":
    """Run ``work`` in a background task; ``on_failure`` gets any exception but the task's own cancellation."""

    async def guarded() -> None:
        try:
            with no_stray_cancellation():
                await work
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - the caller must learn of every error
            on_failure(error)

    task = asyncio.create_task(guarded(), name=name)
    task.add_done_callback(lambda _: work.close())  # a task that is cancelled before its first turn never awaits it
    return task


async def run_to_end(work: Coroutine[Any, Any, T], timeout: float) -> T:
    """Run ``work`` to its end, at most ``GRACE`` seconds longer if the caller is cancelled meanwhile.

    Raises TimeoutError after ``timeout`` seconds; ``work`` is cancelled then.
    """
    task = asyncio.create_task(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=timeout)
    except asyncio.CancelledError:
        await asyncio.wait({task}, timeout=min(timeout, GRACE))
        if not task.done():
            await cancel_and_wait(task)
        elif not task.cancelled():
            task.exception()  # the caller gets the cancellation
        raise
    if not done:
        await cancel_and_wait(task)
        raise TimeoutError(f"not done in {timeout:g} s")
    return task.result()


async def cancel_and_wait(*tasks: "asyncio.Task[Any]") -> None:
    """Cancel tasks and wait until they have ended, whatever their outcome."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
