"""Readiness of a process, with the failing checks.

Checks of other servers (brokers, Cassandra, the storage) run in the background, so a probe is answered at once, from
the latest results, however long such a server hangs.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Literal

import structlog
from pydantic import BaseModel, Field

from infra.cancellation import cancel_and_wait, no_stray_cancellation
from infra.observability import metrics

logger = structlog.get_logger(__name__)

OK = "ok"
NOT_OPEN = "not connected yet"
CHECK_INTERVAL = 2.0
"""Interval and timeout (s) of a check: an outage is noticed within the sum of both."""
FAILED_INTERVAL = 0.5
"""Interval (s) after a failed check: a recovered server is noticed sooner."""
NOT_OPEN_INTERVAL = 0.1
"""Interval (s) while the connection is not open yet: a process becomes ready without delay."""


class NotReady(Exception):
    """A check fails; the message is public, ``detail`` is for the log only."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.detail = detail


class Health(BaseModel):
    """Response of a probe."""

    status: Literal["ok", "ready", "not ready"]
    checks: dict[str, str] | None = Field(None, description="`ok` or the reason of failure, by check")

    @property
    def http_status(self) -> HTTPStatus:
        return HTTPStatus.SERVICE_UNAVAILABLE if self.status == "not ready" else HTTPStatus.OK


ALIVE = Health(status="ok")
"""Liveness: a response at all means that the event loop runs."""


@dataclass
class _Check:
    name: str
    run: Callable[[], Awaitable[None]]
    interval: float
    result: str = NOT_OPEN


class Readiness:
    """The checks of one process. All methods belong to one event loop."""

    def __init__(self) -> None:
        self._states: dict[str, Callable[[], str | None]] = {}
        self._checks: dict[str, _Check] = {}

    def add_state(self, name: str, problem: Callable[[], str | None]) -> None:
        """Add a check of this process's own state: ``problem`` returns the reason of failure, or None."""
        self._states[name] = problem

    def add_check(self, name: str, run: Callable[[], Awaitable[None]], *, interval: float = CHECK_INTERVAL) -> None:
        """Add a check that runs in the background: ``run`` raises NotReady. It times out after two seconds."""
        self._checks[name] = _Check(name, run, interval)

    def health(self) -> Health:
        """The latest results of all checks, without waiting."""
        checks = {name: problem() or OK for name, problem in self._states.items()}
        checks |= {name: check.result for name, check in self._checks.items()}
        return Health(status="ready" if set(checks.values()) <= {OK} else "not ready", checks=checks)

    @asynccontextmanager
    async def checking(self) -> AsyncIterator[None]:
        """Run the background checks for as long as the context lasts."""
        tasks = [
            asyncio.create_task(self._keep_checking(check), name=f"check {check.name}")
            for check in self._checks.values()
        ]
        metrics.READY.read_from(self._by_check)
        try:
            yield
        finally:
            metrics.READY.read_from(None)
            await cancel_and_wait(*tasks)

    async def _keep_checking(self, check: _Check) -> None:
        while True:
            result, detail = OK, ""
            try:
                with no_stray_cancellation():
                    async with asyncio.timeout(CHECK_INTERVAL):
                        await check.run()
            except NotReady as problem:
                result, detail = str(problem), problem.detail
            except TimeoutError:
                result = f"no answer in {CHECK_INTERVAL:g} s"
            except Exception as error:
                logger.exception("check raised an unexpected error", check=check.name)
                result = type(error).__name__
            if result != check.result:
                check.result = result
                if result == OK:
                    logger.info("check passes", check=check.name)
                else:
                    logger.warning("check fails", check=check.name, reason=result, detail=detail)
            await asyncio.sleep(
                check.interval if result == OK else NOT_OPEN_INTERVAL if result == NOT_OPEN else FAILED_INTERVAL
            )

    def _by_check(self) -> dict[tuple[str, ...], float]:
        return {(name,): float(result == OK) for name, result in (self.health().checks or {}).items()}
