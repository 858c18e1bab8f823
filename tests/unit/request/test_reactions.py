"""What is due after an event, and that it is due again after a crash."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import permutations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.events.base import Event
from streams.events.images import ImageFailed, ImageProcessed
from streams.events.progress import ImagesSettled
from streams.events.requests import OutputCsvRequested
from streams.request.lifecycle import RequestState
from streams.request.reactions import stopped
from streams.request.tally import Sums
from tests.support.examples import NOON, completed, created
from tests.unit.request.folded import Folded
from tests.unit.request.stories import (
    FAILING,
    RANDOMS,
    RECEIVER,
    TOTALS,
    cancelled,
    result,
    retried,
    shuffled,
    story,
)

COMPLETED = completed(webhook_url=RECEIVER, total=1, succeeded=1, failed=0)


def outputs(request: Folded, *events: Event) -> list[OutputCsvRequested]:
    return [due for due in request.apply(*events) if isinstance(due, OutputCsvRequested)]


# --- the output CSV


@given(RANDOMS, TOTALS, FAILING, st.sampled_from([0.0, 0.2, 1.0]))
def test_output_is_due_exactly_when_every_image_is_settled(
    random: Random, total: int, failing: float, repeats: float
) -> None:
    told = story(random, total, failing=failing, retry=False)
    missing = {event.id for event in told.events}
    request = Folded()
    asked = []
    for event in shuffled(random, told.events, repeats):
        missing.discard(event.id)
        (due,) = outputs(request, event) or (None,)
        assert (due is None) == bool(missing), "too early, or not at all"
        asked.append(due)
    first, *others = filter(None, asked)
    assert (first.succeeded, first.failed, first.input_bytes, first.output_bytes) == told.expected()
    assert (first.total, first.owner, first.webhook_url) == (total, "shop", RECEIVER)
    assert first.time == NOON + timedelta(seconds=total), "the time of the last result"
    assert all(other == first and other.id == first.id for other in others)


@given(RANDOMS, TOTALS, FAILING, st.sampled_from([0.0, 0.5]))
def test_retry_counts_each_image_once_in_any_order(random: Random, total: int, failing: float, repeats: float) -> None:
    told = story(random, total, failing=failing, retry=True)
    due = outputs(Folded(), *shuffled(random, told.events, repeats))[-1]
    assert (due.succeeded, due.failed, due.input_bytes, due.output_bytes) == told.expected()


@pytest.mark.parametrize("order", list(permutations(range(2))))
def test_success_outlives_failure_of_same_run(order: tuple[int, int]) -> None:
    # A worker published a failure and died, and the next one got the image.
    outcomes = [result(0, succeeds=False), result(0, succeeds=True, input_bytes=9, output_bytes=4)]
    due = outputs(Folded(), created(), *(outcomes[n] for n in order))[-1]
    assert (due.succeeded, due.failed, due.input_bytes, due.output_bytes) == (1, 0, 9, 4)


def test_failed_images_wait_again_in_a_retry() -> None:
    request = Folded(created(total=2), *(result(index, succeeds=False) for index in range(2)))
    assert request.sums().failed == 2
    request.apply(result(0, succeeds=True, run=1))
    assert (request.sums().succeeded, request.sums().failed) == (1, 0)
    assert request.apply(result(1, succeeds=False)) == [], "the first run's failure is no result of the second"
    (due,) = outputs(request, result(1, succeeds=False, run=1))
    assert (due.succeeded, due.failed) == (1, 1)


def test_success_after_completion_makes_output_due_again() -> None:
    """As from a worker that had lost its partition, and whose slow download another worker gave up."""
    request = Folded()
    (first,) = outputs(request, created(total=2), result(0, succeeds=True), result(1, succeeds=False))
    done = completed(total=2, succeeded=1, failed=1)
    assert request.apply(done, result(1, succeeds=False)) == []
    late = result(1, succeeds=True)
    (second,) = outputs(request, late)
    assert (first.failed, second.failed, second.run) == (1, 0, 0)
    assert request.apply(done, late) == [second], "due again after a crash"
    assert request.apply(completed(total=2, succeeded=2, failed=0), late, done) == []


def test_output_of_completed_request_is_not_due() -> None:
    events = [created(), result(0, succeeds=True)]
    request = Folded()
    assert len(request.apply(*events)) == 1
    assert request.apply(COMPLETED, *events) == []


@given(RANDOMS, st.integers(1, 20), FAILING, st.sampled_from([0.0, 0.5]))
def test_results_after_cancellation_do_not_complete_the_request(
    random: Random, total: int, failing: float, repeats: float
) -> None:
    told = story(random, total, failing=failing, retry=False)
    late = random.randint(0, total - 1)  # at least one comes after the cancellation
    request = Folded(told.created, *told.first[:late], cancelled())
    assert request.apply(*shuffled(random, [*told.events, cancelled()], repeats)) == []
    assert request.state.is_cancelled
    assert (request.sums().succeeded, request.sums().failed) == told.expected()[:2], "settled images count"


def test_retry_of_cancelled_request_waits_for_all_unsuccessful_images() -> None:
    request = Folded(created(total=3), result(0, succeeds=True), result(1, succeeds=False), cancelled())
    assert request.apply(retried(1)) == []
    assert not request.state.is_cancelled
    assert request.sums(run=1).settled == 1
    assert request.apply(cancelled(), result(2, succeeds=False)) == [], "both are about the run before"
    assert request.apply(result(1, succeeds=True, run=1)) == []
    (due,) = outputs(request, result(2, succeeds=False, run=1))
    assert (due.run, due.succeeded, due.failed) == (1, 2, 1)


def test_retry_of_all_successful_images_makes_output_due() -> None:
    request = Folded(created(total=1), cancelled(), result(0, succeeds=True))
    (due,) = outputs(request, retried(1))
    assert (due.run, due.succeeded, due.time) == (1, 1, retried(1).time)


# --- settled images


def settled_blocks(events: Sequence[Event], total: int, before: int) -> list[tuple[int, int, int]]:
    """Run, first image and number of images of each block that is due, repeats once.

    ``before``: how many of the events come before their request.
    """
    request, told = Folded(), {}
    creation = created(total=total, rows=total, webhook_url=RECEIVER, webhook_events=("image.failed",))
    for due in request.apply(*events[:before], creation, *events[before:], *events[-1:]):
        if isinstance(due, ImagesSettled):
            assert due.webhook_events == ("image.failed",)
            told[due.id] = due
    return sorted((due.run, due.first, due.count) for due in told.values())


@given(
    st.permutations([result(index, succeeds=index % 3 > 0) for index in range(230)]),
    st.integers(0, 230),
    st.integers(0, 230),
)
@settings(max_examples=20)
def test_each_hundred_images_is_due_once_settled(order: Sequence[Event], known: int, before: int) -> None:
    indexes = {event.index for event in order[:known] if isinstance(event, ImageProcessed | ImageFailed)}
    blocks = [(0, first, count) for first, count in ((0, 100), (100, 100), (200, 30))]
    assert settled_blocks(order[:known], 230, before) == [
        (run, first, count) for run, first, count in blocks if indexes >= set(range(first, first + count))
    ]


def test_settled_images_are_due_across_chunks() -> None:
    order = [result(index, succeeds=True) for index in (*range(950, 1050), *range(950), *range(1050, 1100))]
    assert settled_blocks(order, 1100, 0) == [(0, first, 100) for first in range(0, 1100, 100)]
    assert settled_blocks(order, 1100, 1100) == [(0, first, 100) for first in range(0, 1100, 100)]


def test_settled_images_need_webhook_events() -> None:
    due = Folded().apply(created(webhook_url=RECEIVER), result(0, succeeds=True))
    assert [type(event) for event in due] == [OutputCsvRequested]


@pytest.mark.parametrize("is_expired", [False, True])
def test_stop_of_a_deleted_request_removes_its_files(is_expired: bool) -> None:
    state = replace(RequestState.of(created()), cancelled_run=0, is_expired=is_expired)
    assert stopped(state, Sums()).expired is is_expired
