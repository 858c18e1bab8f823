"""The supervisor with real processes: one that ends is started again, until everything is stopped."""

import asyncio
import os
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from infra.devserver import supervisor
from infra.devserver.process import ChildProcess
from infra.devserver.supervisor import Supervised, Supervisor
from tests.support.waiting import eventually

FIRST, LONGEST = 0.02, 0.1
FOR_EVER = "import time; time.sleep(600)"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "MIN_BACKOFF", FIRST)
    monkeypatch.setattr(supervisor, "MAX_BACKOFF", LONGEST)


def python(program: str, folder: Path, name: str = "child") -> ChildProcess:
    return ChildProcess(name, [sys.executable, "-c", program], log_path=folder / f"{name}.log")


def supervised(child: ChildProcess) -> Supervised:
    return Supervised(lambda: child, child.start, partial(child.stop, 5))


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_process_that_is_killed_is_started_again(tmp_path: Path) -> None:
    child, other = python(FOR_EVER, tmp_path), python(FOR_EVER, tmp_path, "other")
    watching = Supervisor()
    for process in (child, other):
        await process.start()
        watching.watch(supervised(process))
    first, untouched = child.pid, other.pid
    os.kill(first, signal.SIGKILL)

    async def restarted() -> bool:
        return child.pid != first and child.returncode is None

    try:
        await eventually(restarted)
        assert (other.pid, other.returncode) == (untouched, None)
    finally:
        await watching.stop()
    assert not runs(first)


async def ends(pauses: int, folder: Path) -> list[float]:
    """The pauses before the restarts of a process that ends at once, over and over."""
    child = python("raise SystemExit(3)", folder)
    watching = Supervisor()
    with capture_logs() as logs:
        await child.start()
        watching.watch(supervised(child))

        async def enough() -> bool:
            return len(logs) >= pauses

        try:
            await eventually(enough)
        finally:
            await watching.stop()
    assert {entry["event"] for entry in logs} == {"process ended, restarting"}
    assert {entry["status"] for entry in logs} == {3}
    return [entry["backoff"] for entry in logs[:pauses]]


async def test_the_pauses_before_restarts_grow_up_to_a_limit(tmp_path: Path) -> None:
    assert await ends(5, tmp_path) == [FIRST, FIRST * 2, FIRST * 4, LONGEST, LONGEST]


async def test_steady_run_resets_backoff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "STEADY_SECONDS", 0)
    assert await ends(3, tmp_path) == [FIRST, FIRST, FIRST]


async def test_what_cannot_be_started_is_tried_again(tmp_path: Path) -> None:
    child = python(FOR_EVER, tmp_path)
    refusals = iter([OSError("no memory"), RuntimeError("no port")])

    async def start() -> None:
        refusal = next(refusals, None)
        if refusal is not None:
            raise refusal
        await child.start()

    await child.start()
    first = child.pid
    watching = Supervisor()
    with capture_logs() as logs:
        watching.watch(Supervised(lambda: child, start, partial(child.stop, 5)))
        os.kill(first, signal.SIGKILL)

        async def restarted() -> bool:
            return child.pid != first

        try:
            await eventually(restarted)
        finally:
            await watching.stop()
    assert [entry.get("error") for entry in logs] == [None, "no memory", "no port"]


async def test_stop_ends_every_process_and_starts_none_again(tmp_path: Path) -> None:
    children = [python(FOR_EVER, tmp_path, f"child-{number}") for number in range(3)]
    watching = Supervisor()
    for child in children:
        await child.start()
        watching.watch(supervised(child))
    pids = [child.pid for child in children]
    # One of them is between its end and its restart when everything is stopped.
    os.kill(pids[0], signal.SIGKILL)
    await children[0].wait()
    await watching.stop()
    await asyncio.sleep(LONGEST * 2)
    assert [child.returncode is None for child in children] == [False] * 3
    assert [child.pid for child in children] == pids
    assert not any(map(runs, pids))
