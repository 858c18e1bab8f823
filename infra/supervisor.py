"""Keeps child processes running: one that ends unasked is started again, after a pause that grows."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from infra.cancellation import cancel_and_wait, run_beside

log = structlog.get_logger(__name__)

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
STEADY_SECONDS = 30.0  # after that long a run, an end counts as the first one again


class Child(Protocol):
    """What the supervisor needs of a process."""

    @property
    def name(self) -> str: ...
    @property
    def pid(self) -> int: ...
    async def wait(self) -> int: ...


@dataclass
class Supervised:
    """A process, how to start it again, and how to stop it."""

    process: Callable[[], Child]
    start: Callable[[], Awaitable[None]]
    stop: Callable[[], Awaitable[None]]


class Supervisor:
    """Watches processes that have been started already, until it is closed."""

    def __init__(self) -> None:
        self._watches: list[asyncio.Task[None]] = []
        self._watched: list[Supervised] = []

    def watch(self, child: Supervised) -> None:
        self._watched.append(child)
        name = child.process().name

        def fail(error: BaseException) -> None:
            log.error("process is not supervised any more", name=name, exc_info=error)

        self._watches.append(run_beside(self._keep_running(child), name=f"watch {name}", on_failure=fail))

    async def stop(self) -> None:
        """Stop watching, then stop all children side by side; those that are starting just now, too."""
        await cancel_and_wait(*self._watches)
        await asyncio.gather(*(child.stop() for child in self._watched))
        self._watches, self._watched = [], []

    async def _keep_running(self, child: Supervised) -> None:
        loop = asyncio.get_running_loop()
        pause = FIRST_PAUSE
        while True:
            started = loop.time()
            status = await child.process().wait()
            name = child.process().name
            if loop.time() - started > STEADY_SECONDS:
                pause = FIRST_PAUSE
            log.warning("process ended and is started again", name=name, status=status, pause=pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
            while True:
                try:
                    await child.start()
                    break
                except Exception as error:  # noqa: BLE001 - whatever keeps it from starting, it is tried again
                    log.warning("process can't be started", name=name, error=str(error), pause=pause)
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, LONGEST_PAUSE)
