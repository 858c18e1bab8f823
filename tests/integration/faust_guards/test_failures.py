"""F3, F5 and F6: what fails must end the process with nothing committed behind it."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.faust_guards.group import EXIT_SECONDS, Group, at_once
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

FATAL, UNAVAILABLE = 70, 69


def test_agent_exception_ends_process_without_commit(
    new_group: Callable[..., Group],
) -> None:
    # An agent that takes its time to clean up leaves Faust the time to commit
    guarded, unguarded = new_group(cleanup=2.5), new_group(cleanup=2.5, without="F3")
    for group in (guarded, unguarded):
        group.produce([b"", b"", b"raise", b"", b""])
    worker = guarded.start()
    unguarded.start()

    assert worker.wait(EXIT_SECONDS) == FATAL
    assert guarded.committed() == {0: 2}
    assert guarded.output().count("CRITICAL") == 1
    assert "an event that raises" in guarded.output()
    wait_until(lambda: unguarded.committed().get(0) == 5, "a commit past the event", EXIT_SECONDS)
    assert unguarded.started()[0, 2] == 1


def test_handler_exception_ends_process_without_commit(
    new_group: Callable[..., Group],
) -> None:
    group = new_group(in_flight=4)
    group.produce([b"", b"sleep 1.5", b"", b"raise", b""])
    assert group.start().wait(EXIT_SECONDS) == FATAL
    assert group.committed().get(0, 0) <= 1
    assert f"failed at {group.topic}/0 offset 3" in group.output()


def test_stray_cancellation_ends_worker_and_commits_nothing(new_group: Callable[..., Group]) -> None:
    with_handle, one_by_one = new_group(in_flight=4), new_group()

    def meet_a_stray_cancellation(group: Group) -> None:
        group.produce([b"", b"stray", b"", b""])
        assert group.start().wait(EXIT_SECONDS) == FATAL
        assert group.committed().get(0, 0) <= 1
        assert "StrayCancellationError" in group.output()

    at_once(meet_a_stray_cancellation, with_handle, one_by_one)


@pytest.mark.parametrize(("error", "code"), [("ExplainedError", UNAVAILABLE), ("ValueError", FATAL)])
def test_error_of_task_ends_worker(new_group: Callable[..., Group], error: str, code: int) -> None:
    group = new_group(task_error=error)
    assert group.start().wait(EXIT_SECONDS) == code
    assert group.output().count("a task that raises") == (1 if code == UNAVAILABLE else 3), "logged, raised, its source"


def test_refused_changelog_write_ends_process(new_group: Callable[..., Group]) -> None:
    spec: dict[str, Any] = {"table": True, "changelog": {"max.message.bytes": "1000"}}
    guarded, unguarded = new_group(**spec), new_group(**spec, without="F5")
    for group in (guarded, unguarded):
        group.produce([b"", b"", b"write 1 5000", b"", b""])
    worker = guarded.start()
    unguarded.start()

    assert worker.wait(EXIT_SECONDS) == FATAL
    assert guarded.committed().get(0, 0) <= 2
    assert f"cannot write a record to {guarded.changelog}: MessageSizeTooLargeError" in guarded.output()

    wait_until(lambda: unguarded.committed().get(0) == 5, "a commit past the event", EXIT_SECONDS)
    assert len(unguarded.written()) < 5


def test_event_is_committed_after_its_changelog_writes(new_group: Callable[..., Group]) -> None:
    writes = 10

    def kill_once_committed(group: Group) -> None:
        group.produce([b"write %d 10" % writes])
        worker = group.start()
        wait_until(lambda: group.committed().get(0) == 1, "the commit")
        worker.kill()
        worker.wait()

    guarded, unguarded = (new_group(table=True, publish_delay=0.25, without=without) for without in (None, "F6"))
    at_once(kill_once_committed, guarded, unguarded)

    assert len(guarded.written()) == writes
    assert len(unguarded.written()) < writes
