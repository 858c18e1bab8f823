"""What a look at the progress table finds to do about cancelled and retried requests."""

from datetime import datetime, timedelta

import pytest

from streams.events import (
    Event,
    ImagesRequestedAgain,
    RequestCancelled,
    RequestExpired,
    RequestRecorded,
    RequestRetried,
    RequestStopped,
)
from streams.progress.fold import fold, row_key, split_key
from streams.progress.housekeeping import Limits, Stalled, Task, Unasked, abandoned, task_for
from tests.support.examples import NOON, REQUEST_ID, completed, created, failed, processed, requested

LIMITS = Limits(stall_after=timedelta(minutes=5), heal_limit=2, grace=timedelta(hours=1))
CANCELLED = RequestCancelled(request_id=REQUEST_ID, time=NOON + timedelta(minutes=1))
RETRIED = RequestRetried(request_id=REQUEST_ID, run=1, created_at=NOON, time=NOON + timedelta(minutes=2))


def after(*events: Event, at: datetime) -> Task | None:
    table: dict[bytes, bytes] = {}
    for event in events:
        for key, value in fold(event, table.get).items():
            if value is None:
                table.pop(key, None)
            else:
                table[key] = value
    return task_for(REQUEST_ID, table[row_key(REQUEST_ID)], table.get, at, LIMITS)


def recorded(run: int) -> RequestRecorded:
    return RequestRecorded(request_id=REQUEST_ID, run=run)


def asked(run: int, heal: int) -> ImagesRequestedAgain:
    return ImagesRequestedAgain(
        request_id=REQUEST_ID, run=run, heal=heal, missing=1, image_offsets={}, time=RETRIED.time
    )


def test_a_cancelled_request_is_left_alone_until_the_grace_is_over_then_summed_up_recorded_and_let_go() -> None:
    events = [created(total=3), processed(requested(index=0)), failed(requested(index=1)), CANCELLED]
    assert after(*events, at=NOON + timedelta(minutes=30)) is None
    stopped = after(*events, at=NOON + timedelta(hours=2))
    assert isinstance(stopped, RequestStopped)
    assert (stopped.total, stopped.succeeded, stopped.failed, stopped.run) == (3, 1, 1, 0)
    assert stopped.time == CANCELLED.time
    expired = after(*events, recorded(0), at=NOON + timedelta(hours=2))
    assert isinstance(expired, RequestExpired)
    assert (expired.stage, expired.run) == ("done", 0)


@pytest.mark.parametrize("end", [CANCELLED, completed()])
def test_a_retry_is_begun_at_once_for_all_that_has_not_succeeded_and_once(end: Event) -> None:
    events = [created(total=3), processed(requested(index=0)), failed(requested(index=1)), end, recorded(0), RETRIED]
    task = after(*events, at=RETRIED.time)
    assert isinstance(task, Unasked)
    assert task.missing == (1, 2)
    assert after(*events, asked(1, 0), at=RETRIED.time) is None


def test_a_retry_that_stands_still_is_helped_as_often_as_the_first_run() -> None:
    events = [created(total=1), *(asked(0, heal) for heal in (1, 2)), failed(requested()), completed(), RETRIED]
    for heals, give_up in ((0, False), (1, False), (2, True)):
        task = after(*events, *(asked(1, heal) for heal in range(heals + 1)), at=NOON + timedelta(hours=1))
        assert isinstance(task, Stalled)
        assert (task.missing, task.row.heals, task.give_up) == ((0,), heals, give_up)


def test_a_retried_request_leaves_when_its_last_run_is_recorded() -> None:
    done = completed(run=1, time=NOON + timedelta(hours=1))
    events = [created(), completed(), recorded(0), RETRIED, done]
    assert after(*events, at=NOON + timedelta(days=1)) is None
    expired = after(*events, recorded(1), at=NOON + timedelta(days=1))
    assert isinstance(expired, RequestExpired)
    assert expired.run == 1


def test_the_mark_of_a_request_that_left_is_forgotten_with_its_run_after_a_week() -> None:
    gone = RequestExpired(request_id=REQUEST_ID, stage="done", run=1, time=NOON)
    events = [created(), completed(), RETRIED, gone]
    assert after(*events, at=NOON + timedelta(days=6)) is None
    task = after(*events, at=NOON + timedelta(days=8))
    assert isinstance(task, RequestExpired)
    assert (task.stage, task.run) == ("forgotten", 1)


def test_results_whose_request_never_came_leave_after_a_week_all_at_once_and_only_they() -> None:
    table: dict[bytes, bytes] = {}

    def write(*events: Event) -> None:
        for event in events:
            for key, value in fold(event, table.get).items():
                if value is None:
                    table.pop(key, None)
                else:
                    table[key] = value

    write(*(processed(requested(index=index)) for index in (5, 1005)), failed(requested(index=7005)))
    write(processed(requested("young")).model_copy(update={"time": NOON + timedelta(days=3)}))
    write(created("whole"), processed(requested("whole")))
    assert list(abandoned(table.items(), table.get, NOON + timedelta(days=7))) == []
    (gone,) = abandoned(table.items(), table.get, NOON + timedelta(days=8))
    assert (gone.request_id, gone.stage, gone.images) == (REQUEST_ID, "abandoned", 8000)
    write(gone)
    assert {split_key(key) for key in table} == {("young", 0), ("whole", 0), ("whole", None)}
    assert fold(gone, table.get) == {}


def test_results_whose_request_comes_after_all_stay() -> None:
    table: dict[bytes, bytes] = {}
    for event in (processed(requested()), created()):
        gone = list(abandoned(table.items(), table.get, NOON + timedelta(days=8)))
        table.update({key: value for key, value in fold(event, table.get).items() if value is not None})
    assert [fold(event, table.get) for event in gone] == [{}]
