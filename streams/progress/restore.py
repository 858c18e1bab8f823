"""Restores of evicted requests from the log, beside the fold of the other requests."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from infra.cancellation import run_in_background
from streams.events.base import Event
from streams.events.requests import RequestRetried

RESTORES = 4
"""Maximum number of restores at once: each reads four partitions."""
PARKED_BYTES = 8 * 1024 * 1024
"""Size of the parked records from which no more records are taken until one of the restores is complete."""

R = TypeVar("R")
"""A record with an event."""


@dataclass
class _Restore(Generic[R]):
    retried: RequestRetried
    parked: list[tuple[R, Event]] = field(default_factory=list)
    size: int = 0
    task: "asyncio.Task[None] | None" = None


class Restores(Generic[R]):
    """Parks the events about requests that are being restored, and folds them afterwards, in their order.

    A record is finished only when its event is folded: after a kill, all of them are redelivered.
    """

    def __init__(
        self,
        *,
        restore: Callable[[RequestRetried], Awaitable[bool]],
        fold: Callable[[Event], Awaitable[None]],
        requeue: Callable[[RequestRetried], Awaitable[None]],
        finish: Callable[[R], Awaitable[Any]],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """``restore`` folds the request from the log into the table; False if a rebalance interrupted it.

        Then ``requeue`` gets the retry, and the parked events are dropped: the next restore reads them from the log.
        """
        self._restore = restore
        self._fold = fold
        self._requeue = requeue
        self._finish = finish
        self._on_failure = on_failure
        self._running: dict[str, _Restore[R]] = {}

    def __contains__(self, request_id: str) -> bool:
        """Whether the request is being restored, so that events about it must be parked."""
        return request_id in self._running

    async def start(self, record: R, retried: RequestRetried, size: int) -> None:
        """Begin the restore that a retry needs; waits for another one if there are too many."""
        while len(self._running) >= RESTORES:
            await self._any_done()
        restore = _Restore[R](retried, [(record, retried)], size)
        self._running[retried.request_id] = restore
        restore.task = run_in_background(
            self._run(restore), name=f"restore {retried.request_id}", on_failure=self._on_failure
        )

    async def park(self, record: R, event: Event, size: int) -> None:
        """Park an event about a request that is being restored; waits if there are too many. ``size``: in bytes."""
        restore = self._running[event.request_id]
        restore.parked.append((record, event))
        restore.size += size
        while sum(each.size for each in self._running.values()) > PARKED_BYTES:
            await self._any_done()

    async def stop(self, timeout: float) -> None:
        """Wait for those that run, which end at an interruption; after ``timeout`` seconds, cancel them."""
        tasks = self._tasks()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=timeout)
            for task in late:
                task.cancel()

    async def _any_done(self) -> None:
        await asyncio.wait(self._tasks(), return_when=asyncio.FIRST_COMPLETED)

    def _tasks(self) -> "set[asyncio.Task[None]]":
        return {each.task for each in self._running.values() if each.task is not None}

    async def _run(self, restore: _Restore[R]) -> None:
        request_id = restore.retried.request_id
        if await self._restore(restore.retried):
            done = 0
            while done < len(restore.parked):  # which may grow meanwhile
                record, event = restore.parked[done]
                await self._fold(event)
                await self._finish(record)
                done += 1
            del self._running[request_id]
        else:
            await self._requeue(restore.retried)
            del self._running[request_id]
            for record, _ in restore.parked:
                await self._finish(record)
