"""Restores of evicted requests: other events go on, events about the request keep their order."""

import asyncio
from collections.abc import Callable

import pytest

from streams.events.base import Event
from streams.events.images import ImageProcessed
from streams.events.requests import RequestRetried
from streams.progress import restore as restore_module
from streams.progress.restore import Restores
from tests.support.examples import NOON, processed, requested

SIZE = 100


class Fold:
    """What the restores of a worker do; records are numbers."""

    def __init__(self) -> None:
        self.read = asyncio.Event()
        self.is_interrupted = False
        self.folded: list[Event] = []
        self.finished: list[int] = []
        self.requeued: list[RequestRetried] = []
        self.failures: list[BaseException] = []
        self.restores = Restores[int](
            restore=self._restore,
            fold=self._fold,
            requeue=self._requeue,
            finish=self._finish,
            on_failure=self.failures.append,
        )

    async def _restore(self, _: RequestRetried) -> bool:
        await self.read.wait()
        return not self.is_interrupted

    async def _fold(self, event: Event) -> None:
        await asyncio.sleep(0)
        self.folded.append(event)

    async def _requeue(self, event: RequestRetried) -> None:
        self.requeued.append(event)

    async def _finish(self, record: int) -> None:
        self.finished.append(record)

    async def end(self) -> None:
        self.read.set()
        await self.restores.stop(10)
        assert not self.failures


def retried(request_id: str) -> RequestRetried:
    return RequestRetried(request_id=request_id, run=1, created_at=NOON, time=NOON)


def result(request_id: str, index: int) -> ImageProcessed:
    return processed(requested(request_id, index))


async def test_parked_events_are_folded_in_order() -> None:
    fold = Fold()
    events: list[Event] = [retried("a"), *(result("a", index) for index in range(5))]
    await fold.restores.start(0, retried("a"), SIZE)
    for record in range(1, 6):
        await fold.restores.park(record, events[record], SIZE)
    assert "a" in fold.restores
    assert "b" not in fold.restores
    await asyncio.sleep(0)
    assert (fold.folded, fold.finished) == ([], []), "nothing is finished before it is folded"
    await fold.end()
    assert fold.folded == events
    assert fold.finished == [0, 1, 2, 3, 4, 5]
    assert "a" not in fold.restores


async def test_interrupted_restore_requeues_retry_only() -> None:
    fold = Fold()
    fold.is_interrupted = True
    await fold.restores.start(0, retried("a"), SIZE)
    await fold.restores.park(1, result("a", 0), SIZE)
    await fold.end()
    assert fold.requeued == [retried("a")]
    assert fold.folded == []
    assert fold.finished == [0, 1]


@pytest.mark.parametrize(
    ("bound", "value", "go_on"),
    [
        ("PARKED_BYTES", 2 * SIZE, lambda restores: restores.park(2, result("a", 1), SIZE)),
        ("RESTORES", 1, lambda restores: restores.start(2, retried("b"), SIZE)),
    ],
)
async def test_full_restores_wait(
    monkeypatch: pytest.MonkeyPatch, bound: str, value: int, go_on: Callable[[Restores[int]], "asyncio.Future[None]"]
) -> None:
    monkeypatch.setattr(restore_module, bound, value)
    fold = Fold()
    await fold.restores.start(0, retried("a"), SIZE)
    await fold.restores.park(1, result("a", 0), SIZE)
    waiting = asyncio.ensure_future(go_on(fold.restores))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not waiting.done()
    fold.read.set()
    await waiting
    await fold.end()


async def test_failed_restore_is_reported() -> None:
    fold = Fold()

    async def fail(_: RequestRetried) -> bool:
        raise OSError("no log")

    fold.restores._restore = fail
    await fold.restores.start(0, retried("a"), SIZE)
    await fold.restores.stop(10)
    assert isinstance(fold.failures[0], OSError)
    assert fold.finished == []
