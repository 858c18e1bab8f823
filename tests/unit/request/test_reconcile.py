"""The task that a pass finds for a request, and the plan for one that is stalled."""

from datetime import datetime, timedelta

import pytest

from streams.events.base import Event
from streams.events.progress import ImagesRerequested, ProgressEvicted, RequestProjected
from streams.events.requests import (
    OutputCsvRequested,
    RequestCancelled,
    RequestCompleted,
    RequestRetried,
    RequestStopped,
)
from streams.events.webhooks import WebhookDelivered, WebhookRedeliveryRequested
from streams.request.reconcile import (
    Committed,
    Limits,
    LoggedRequest,
    LoggedResult,
    Plan,
    RetryDue,
    Stalled,
    Task,
    given_up,
    in_run,
    next_task,
    plan,
    unknown_image,
)
from tests.support.examples import NOON, REQUEST_ID, completed, created, failed, processed, requested
from tests.unit.request.folded import Folded

LIMITS = Limits(
    stall_after=timedelta(minutes=5), rounds=2, grace=timedelta(hours=1), webhook_overdue=timedelta(hours=9)
)
CANCELLED = RequestCancelled(request_id=REQUEST_ID, time=NOON + timedelta(minutes=1))
RETRIED = RequestRetried(request_id=REQUEST_ID, run=1, created_at=NOON, time=NOON + timedelta(minutes=2))
LATE = NOON + timedelta(hours=2)


def task_after(*events: Event, at: datetime = LATE) -> Task | None:
    request = Folded(*events)
    assert request.entry is not None
    return next_task(REQUEST_ID, request.entry, lambda: request.tallies, at, LIMITS)


def recorded(run: int) -> RequestProjected:
    return RequestProjected(request_id=REQUEST_ID, run=run)


def rerequested(run: int, number: int) -> ImagesRerequested:
    return ImagesRerequested(
        request_id=REQUEST_ID,
        run=run,
        cause="stalled" if number else "retry",
        round=number,
        missing=1,
        image_offsets={},
        time=RETRIED.time,
    )


# --- tasks


def test_cancelled_request_is_stopped_then_evicted_after_grace() -> None:
    events = [created(total=3), processed(requested(index=0)), failed(requested(index=1)), CANCELLED]
    assert task_after(*events, at=NOON + timedelta(minutes=30)) is None
    stopped = task_after(*events)
    assert isinstance(stopped, RequestStopped)
    assert (stopped.total, stopped.succeeded, stopped.failed, stopped.run) == (3, 1, 1, 0)
    assert stopped.time == CANCELLED.time
    evicted = task_after(*events, stopped, recorded(0))
    assert isinstance(evicted, ProgressEvicted)
    assert (evicted.stage, evicted.run) == ("evicted", 0)


@pytest.mark.parametrize("end", [CANCELLED, completed()])
def test_retry_requests_all_unsuccessful_images_once(end: Event) -> None:
    events = [created(total=3), processed(requested(index=0)), failed(requested(index=1)), end, recorded(0), RETRIED]
    task = task_after(*events, at=RETRIED.time)
    assert isinstance(task, RetryDue)
    assert task.missing == {1, 2}
    assert task_after(*events, rerequested(1, 0), at=RETRIED.time) is None


def test_stalled_retry_has_as_many_rounds_as_first_run() -> None:
    earlier = [rerequested(0, number) for number in (1, 2)]
    events = [created(total=1), *earlier, failed(requested()), completed(), RETRIED]
    for rounds, give_up in ((0, False), (1, False), (2, True)):
        task = task_after(*events, *(rerequested(1, number) for number in range(rounds + 1)))
        assert isinstance(task, Stalled)
        assert (task.missing, task.state.rounds, task.give_up) == ({0}, rounds, give_up)


def test_settled_request_without_output_csv_requests_it_again() -> None:
    task = task_after(created(), processed(requested()))
    assert isinstance(task, OutputCsvRequested)
    assert (task.succeeded, task.failed) == (1, 0)


def test_completion_with_overdue_webhook_is_published_again() -> None:
    url = "https://receiver.example/hook"
    results = [processed(requested(index=0)), failed(requested(index=1))]
    output, *_ = (each for each in Folded(created(total=2, webhook_url=url)).apply(*results))
    assert isinstance(output, OutputCsvRequested)
    completion = RequestCompleted(
        **output.model_dump(), time=output.time, output_csv_url="https://cdn.example/1", output_csv_path="csv/1"
    )
    events = [created(total=2, webhook_url=url), *results, completion, recorded(0)]
    overdue = completion.time + LIMITS.webhook_overdue
    assert task_after(*events, at=overdue) is None
    assert task_after(*events, at=overdue + timedelta(seconds=1)) == completion
    redelivery = WebhookRedeliveryRequested(
        request_id=REQUEST_ID, webhook_id="msg", kind="request.completed", after_attempt=1, time=overdue
    )
    assert task_after(*events, redelivery, at=overdue + timedelta(hours=1)) is None
    delivered = WebhookDelivered(
        request_id=REQUEST_ID, webhook_id="msg", kind="request.completed", attempts=1, run=0, time=overdue
    )
    assert isinstance(task_after(*events, delivered, at=overdue + timedelta(days=1)), ProgressEvicted)
    late = processed(requested(index=1))
    assert task_after(*events, late, at=overdue + timedelta(days=1)) is None, "its output CSV is requested again"


def test_completed_request_is_evicted_once_recorded() -> None:
    events = [created(), processed(requested()), completed()]
    assert task_after(*events) is None
    evicted = task_after(*events, recorded(0))
    assert isinstance(evicted, ProgressEvicted)


def test_pending_webhook_keeps_completed_request() -> None:
    url = "https://receiver.example/hook"
    events = [created(webhook_url=url), processed(requested()), completed(webhook_url=url), recorded(0)]
    assert task_after(*events) is None


def test_retried_request_is_evicted_after_its_last_run() -> None:
    done = completed(run=1, time=NOON + timedelta(hours=1))
    events = [created(), completed(), recorded(0), RETRIED, done]
    a_day_later = NOON + timedelta(days=1)
    assert task_after(*events, at=a_day_later) is None
    evicted = task_after(*events, recorded(1), at=a_day_later)
    assert isinstance(evicted, ProgressEvicted)
    assert evicted.run == 1


def test_tombstone_is_dropped_after_a_week() -> None:
    events = [created(), completed(), RETRIED]
    gone = ProgressEvicted(request_id=REQUEST_ID, stage="evicted", run=1, time=NOON)
    assert task_after(*events, gone, at=NOON + timedelta(days=6)) is None
    task = task_after(*events, gone, at=NOON + timedelta(days=8))
    assert isinstance(task, ProgressEvicted)
    assert (task.stage, task.run) == ("tombstone_dropped", 1)


# --- plans


def stalled(total: int, *, run: int = 0, give_up: bool = False) -> Stalled:
    rounds = [rerequested(0, number) for number in range(3)] if give_up else []
    retry = [RETRIED, rerequested(1, 0)] if run else []
    task = task_after(created(total=total), *rounds, *retry)
    assert isinstance(task, Stalled)
    assert (len(task.missing), task.state.run, task.give_up) == (total, run, give_up)
    return task


def requests_of(*images: int, run: int = 0, offset: int = 0) -> list[LoggedRequest]:
    return [LoggedRequest(0, offset, image, run) for image in images]


HANDLED = Committed(results=100, requests={0: 100})


def test_missed_result_is_republished_once() -> None:
    results = [LoggedResult(offset, 0, 0, True) for offset in (7, 9)]
    assert plan(stalled(1), results, [], HANDLED) == Plan({7}, set(), set(), set(), {0})


def test_failure_and_success_of_an_image_are_both_republished() -> None:
    results = [LoggedResult(7, 0, 0, False), LoggedResult(8, 0, 0, True), LoggedResult(9, 0, 0, False)]
    assert plan(stalled(1), results, [], HANDLED).republish == {7, 8}


def test_plan_waits_for_result_that_progress_will_fold() -> None:
    found = plan(stalled(1), [LoggedResult(100, 0, 0, True)], [], HANDLED)
    assert (found.republish, found.wait) == (set(), {0})


def test_failure_of_earlier_run_is_no_result() -> None:
    results = [LoggedResult(1, 0, 0, False), LoggedResult(2, 1, 0, True), LoggedResult(3, 2, 1, False)]
    found = plan(stalled(3, run=1), results, requests_of(0, run=1), HANDLED)
    assert (found.republish, found.rerequest, found.wait) == ({2, 3}, {0}, {1, 2})


def test_queued_image_is_waited_for() -> None:
    requests = [*requests_of(0, 1), *requests_of(1, offset=100)]
    found = plan(stalled(2), [], requests, HANDLED)
    assert (found.rerequest, found.wait) == ({0}, {1})


def test_queued_request_of_earlier_run_is_no_answer() -> None:
    found = plan(stalled(1, run=1), [], requests_of(0, run=0, offset=100), HANDLED)
    assert (found.rerequest, found.wait) == ({0}, set())


def test_unknown_partition_of_compress_counts_as_unhandled() -> None:
    found = plan(stalled(1), [], [LoggedRequest(9, 5, 0, 0)], HANDLED)
    assert found.wait == {0}


def test_lost_images_fail_after_last_round() -> None:
    found = plan(stalled(3, give_up=True), [LoggedResult(1, 2, 0, True)], requests_of(0, 2), HANDLED)
    assert (found.rerequest, found.fail, found.unknown, found.republish) == (set(), {0}, {1}, {1})


def test_image_without_request_on_log_is_unknown() -> None:
    assert plan(stalled(2), [], requests_of(0), HANDLED).unknown == {1}


def test_every_missing_image_has_one_fate() -> None:
    results = [LoggedResult(offset, offset, 0, bool(offset % 2)) for offset in range(4)]
    requests = [*requests_of(*range(8)), *requests_of(6, 7, offset=200)]
    found = plan(stalled(10), results, requests, HANDLED)
    fates = [found.rerequest, found.fail, found.unknown, found.wait]
    assert sorted(image for fate in fates for image in fate) == list(range(10))


# --- the events of a plan


def test_rerequested_image_is_the_same_event_each_time() -> None:
    state = Folded(created(owner="shop"), RETRIED).state
    again = in_run(requested(), state)
    assert (again.run, again.time, again.owner) == (1, RETRIED.time, "shop")
    assert in_run(again, state) == again


def test_given_up_image_names_reason_and_rounds() -> None:
    gone = given_up(requested(), stalled(1, give_up=True).state)
    assert (gone.reason, gone.detail, gone.run) == ("lost", "no result after 2 more requests", 0)


def test_unknown_image_fails_in_current_run() -> None:
    gone = unknown_image(Folded(created(total=9), RETRIED).state, 8)
    assert (gone.index, gone.run, gone.reason, gone.requested_at) == (8, 1, "lost", RETRIED.time)
