"""Whether a process may be sent work, and if not, why.

What must be asked of somebody else (brokers, Cassandra, the storage) is asked in the background, so that a probe is
answered at once, from what was learned a moment ago, however long the other one takes to say nothing.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Literal

import structlog
from pydantic import BaseModel, Field

from infra import metrics
from infra.cancellation import cancel_and_wait, no_stray_cancellation

log = structlog.get_logger(__name__)

OK = "ok"
NOT_OPEN = "not connected yet"
EVERY = 2.0
"""Seconds between two questions, and that the answer may take: a server that stops is noticed within both."""
AGAIN_AFTER = 0.5
"""Seconds after a question without a good answer: what is back is noticed sooner."""
LOOK_AGAIN = 0.1
"""Seconds while there is nobody to be asked yet: a process is ready as soon as it can be."""


class NotReady(Exception):
    """A check fails; the message says so to a stranger, ``detail`` to the log."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.detail = detail


class Health(BaseModel):
    """What a probe says."""

    status: Literal["ok", "ready", "not ready"]
    checks: dict[str, str] | None = Field(None, description="`ok`, or what is wrong, for each thing that is needed")

    @property
    def http_status(self) -> HTTPStatus:
        return HTTPStatus.SERVICE_UNAVAILABLE if self.status == "not ready" else HTTPStatus.OK


ALIVE = Health(status="ok")
"""That it is answered at all is the answer: the event loop turns."""


@dataclass
class _Question:
    name: str
    ask: Callable[[], Awaitable[None]]
    every: float
    outcome: str = NOT_OPEN


class Readiness:
    """The checks of one process. All methods belong to one event loop."""

    def __init__(self) -> None:
        self._states: dict[str, Callable[[], str | None]] = {}
        self._questions: dict[str, _Question] = {}

    def add_state(self, name: str, problem: Callable[[], str | None]) -> None:
        """A check of something that this process knows: what is wrong, or None."""
        self._states[name] = problem

    def add_question(self, name: str, ask: Callable[[], Awaitable[None]], *, every: float = EVERY) -> None:
        """A check that takes a while: ``ask`` raises NotReady. It is given up after two seconds."""
        self._questions[name] = _Question(name, ask, every)

    def health(self) -> Health:
        """The state of all checks, at once."""
        checks = {name: problem() or OK for name, problem in self._states.items()}
        checks |= {name: question.outcome for name, question in self._questions.items()}
        return Health(status="ready" if set(checks.values()) <= {OK} else "not ready", checks=checks)

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        """Ask in the background, for as long as the context lasts."""
        tasks = [
            asyncio.create_task(self._keep_asking(one), name=f"ask {one.name}") for one in self._questions.values()
        ]
        metrics.READY.read_from(self._by_check)
        try:
            yield
        finally:
            metrics.READY.read_from(None)
            await cancel_and_wait(*tasks)

    async def _keep_asking(self, question: _Question) -> None:
        while True:
            outcome, detail = OK, ""
            try:
                with no_stray_cancellation():
                    await asyncio.wait_for(question.ask(), EVERY)
            except NotReady as problem:
                outcome, detail = str(problem), problem.detail
            except TimeoutError:
                outcome = f"no answer in {EVERY:g} s"
            except Exception as error:
                # A check that is broken must not pass for one that was never made.
                log.exception("check failed", check=question.name)
                outcome = type(error).__name__
            if outcome != question.outcome:
                question.outcome = outcome
                if outcome == OK:
                    log.info("check passes", check=question.name)
                else:
                    log.warning("check fails", check=question.name, reason=outcome, detail=detail)
            await asyncio.sleep(question.every if outcome == OK else LOOK_AGAIN if outcome == NOT_OPEN else AGAIN_AFTER)

    def _by_check(self) -> dict[tuple[str, ...], float]:
        return {(name,): float(said == OK) for name, said in (self.health().checks or {}).items()}
