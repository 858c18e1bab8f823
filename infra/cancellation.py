"""Cancellations of our own, told apart from stray ones.

A library's CancelledError can reach a task that nobody cancelled: aiokafka's ``stop()`` raises that of a task of its
own. Passed on, it would end our task as if somebody had wanted that, and nobody would notice.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any


class StrayCancellationError(Exception):
    """A CancelledError that reached a task which nobody cancelled."""


@contextmanager
def no_stray_cancellation() -> Iterator[None]:
    """Raise StrayCancellationError for a CancelledError while nobody has cancelled the current task."""
    try:
        yield
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise StrayCancellationError(f"a cancellation that nobody sent reached {task.get_name()}") from error


def run_beside(
    work: Coroutine[Any, Any, None], *, name: str, on_failure: Callable[[BaseException], None]
) -> "asyncio.Task[None]":
    """Run ``work`` in a task of its own; ``on_failure`` is called with whatever ends it but its own cancellation."""

    async def guarded() -> None:
        try:
            with no_stray_cancellation():
                await work
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever it is, the caller must know
            on_failure(error)

    return asyncio.create_task(guarded(), name=name)


async def cancel_and_wait(*tasks: "asyncio.Task[Any]") -> None:
    """Cancel tasks and wait for their end, however they end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
