"""Supervisor of child processes: restarts crashed ones with exponential backoff."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from infra.cancellation import cancel_and_wait, run_in_background

logger = structlog.get_logger(__name__)

MIN_BACKOFF = 0.5
MAX_BACKOFF = 8.0
"""Bounds (s) how long after an outage of Kafka, Cassandra or the storage a worker that ended meanwhile is started."""
STEADY_SECONDS = 30.0  # a run that lasted this long resets the backoff


class Child(Protocol):
    """A process that can be supervised."""

    @property
    def name(self) -> str: ...
    @property
    def pid(self) -> int: ...
    async def wait(self) -> int: ...


@dataclass
class Supervised:
    """A process with its start and stop functions."""

    process: Callable[[], Child]
    start: Callable[[], Awaitable[None]]
    stop: Callable[[], Awaitable[None]]


class Supervisor:
    """Supervises processes that are already started, until it is stopped."""

    def __init__(self) -> None:
        self._watches: list[asyncio.Task[None]] = []
        self._watched: list[Supervised] = []

    def watch(self, child: Supervised) -> None:
        self._watched.append(child)
        name = child.process().name

        def fail(error: BaseException) -> None:
            logger.error("supervision of process failed", name=name, exc_info=error)

        self._watches.append(run_in_background(self._keep_running(child), name=f"watch {name}", on_failure=fail))

    async def stop(self) -> None:
        """Stop supervising, then stop all children concurrently, including those that are being restarted."""
        await cancel_and_wait(*self._watches)
        await asyncio.gather(*(child.stop() for child in self._watched))
        self._watches, self._watched = [], []

    async def _keep_running(self, child: Supervised) -> None:
        loop = asyncio.get_running_loop()
        backoff = MIN_BACKOFF
        while True:
            started = loop.time()
            status = await child.process().wait()
            name = child.process().name
            if loop.time() - started > STEADY_SECONDS:
                backoff = MIN_BACKOFF
            logger.warning("process ended, restarting", name=name, status=status, backoff=backoff)
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, MAX_BACKOFF)
            while True:
                try:
                    await child.start()
                    break
                except Exception as error:  # noqa: BLE001 - any failed start is retried
                    logger.warning("cannot restart process", name=name, error=str(error), backoff=backoff)
                    await asyncio.sleep(backoff)
                    backoff = min(backoff * 2, MAX_BACKOFF)
