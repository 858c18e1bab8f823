"""The life of a request is the same in whatever order, and however often, its events come."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import permutations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.events.base import Event
from streams.events.progress import ProgressEvicted, RequestProjected
from streams.events.requests import OutputCsvRequested, RequestStopped
from streams.events.webhooks import WebhookAttempted, WebhookDelivered, WebhookFailed
from streams.request.lifecycle import Lifecycle, Phase, RequestState, Tombstone, advance, evolve, must_restore
from streams.request.reconcile import Limits, next_task
from tests.support.examples import NOON, REQUEST_ID, completed, created, processed, requested
from tests.unit.request.folded import Folded
from tests.unit.request.stories import (
    FAILING,
    RANDOMS,
    RECEIVER,
    cancelled,
    evicted,
    expired,
    forgotten,
    rerequested,
    result,
    retried,
    shuffled,
    story,
    webhook_outcome,
)

DELIVERED, UNDELIVERED = webhook_outcome(WebhookDelivered, 3), webhook_outcome(WebhookFailed, 2)
COMPLETED = completed(webhook_url=RECEIVER, total=1, succeeded=1, failed=0)
AGAIN_COMPLETED = completed(run=1, time=NOON + timedelta(minutes=5), webhook_url=RECEIVER, output_csv_path="csv/1.csv")
STOPPED = RequestStopped(
    request_id=REQUEST_ID, total=1, succeeded=0, failed=0, input_bytes=0, output_bytes=0, created_at=NOON
)
RECORDED = [RequestProjected(request_id=REQUEST_ID, run=run) for run in (0, 1, 2)]
EVERY_FACT: list[Event] = [
    *(completed(run=run, failed=failed, webhook_url=RECEIVER) for run in (0, 1) for failed in (0, 2)),
    webhook_outcome(WebhookFailed, 300),
    webhook_outcome(WebhookDelivered, 301, run=1),
    *(rerequested(run, number) for run, number in ((0, 1), (0, 2), (1, 0), (1, 1))),
    *RECORDED,
    *(cancelled(run) for run in (0, 1)),
    *(retried(run) for run in (1, 2)),
    STOPPED,
    expired(),
    forgotten(),
]


# --- any order, any repetition


@settings(max_examples=100)
@given(RANDOMS, st.integers(2, 20), FAILING, st.sampled_from([0.0, 0.5]))
def test_state_does_not_depend_on_order_or_repetition(
    random: Random, total: int, failing: float, repeats: float
) -> None:
    told = story(random, total, failing=failing, retry=True)
    events = [*told.events, *random.sample(EVERY_FACT, k=random.randint(0, len(EVERY_FACT)))]
    in_order = Folded(*events)
    request = Folded(told.created, *shuffled(random, events, repeats))
    assert (request.state, request.tallies) == (in_order.state, in_order.tallies)


@given(st.sampled_from(EVERY_FACT), RANDOMS)
def test_repeated_event_leaves_the_same_object(event: Event, random: Random) -> None:
    state = Folded(created(), *random.sample(EVERY_FACT, k=len(EVERY_FACT)), event).state
    assert evolve(state, event) is state


@pytest.mark.parametrize("event", EVERY_FACT)
def test_event_before_creation_is_ignored(event: Event) -> None:
    assert evolve(None, event) is None


def test_second_creation_changes_nothing() -> None:
    state = Folded(created(), COMPLETED).state
    assert evolve(state, created(owner="somebody else")) is state


def test_irrelevant_event_changes_nothing() -> None:
    attempted = WebhookAttempted(request_id=REQUEST_ID, webhook_id="msg_1", attempt=1, milliseconds=5)
    output = OutputCsvRequested(**COMPLETED.model_dump())
    state = Folded(created()).state
    for event in (requested(), processed(requested()), attempted, output):
        assert evolve(state, event) is state


# --- runs


@pytest.mark.parametrize(
    ("events", "run", "phase", "is_ended"),
    [
        ([], 0, Phase.PROCESSING, False),
        ([cancelled()], 0, Phase.CANCELLED, False),
        ([cancelled(), STOPPED], 0, Phase.CANCELLED, True),
        ([COMPLETED], 0, Phase.COMPLETED, True),
        ([COMPLETED, cancelled()], 0, Phase.COMPLETED, True),
        ([COMPLETED, retried(1)], 1, Phase.PROCESSING, False),
        ([cancelled(), STOPPED, retried(1)], 1, Phase.PROCESSING, False),
        ([COMPLETED, retried(1), cancelled(0)], 1, Phase.PROCESSING, False),
        ([COMPLETED, retried(1), cancelled(1)], 1, Phase.CANCELLED, False),
        ([COMPLETED, retried(1), AGAIN_COMPLETED], 1, Phase.COMPLETED, True),
        ([COMPLETED, expired()], 0, Phase.EXPIRED, True),
        ([cancelled(), STOPPED, expired()], 0, Phase.EXPIRED, True),
        ([COMPLETED, retried(1), expired()], 0, Phase.EXPIRED, True),
        ([COMPLETED, retried(1), AGAIN_COMPLETED, expired()], 1, Phase.EXPIRED, True),
    ],
)
def test_facts_give_run_and_phase(events: Sequence[Event], run: int, phase: Phase, is_ended: bool) -> None:
    for order in permutations(events):
        state = Folded(created(), *order).state
        assert (state.run, state.phase, state.is_ended) == (run, phase, is_ended)


@pytest.mark.parametrize("order", list(permutations([COMPLETED, cancelled()])))
def test_completed_run_is_not_cancelled(order: Sequence[Event]) -> None:
    state = Folded(created(), *order).state
    assert (state.is_completed, state.is_cancelled) == (True, False)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_completion_with_fewest_failures_holds(order: tuple[int, ...]) -> None:
    ends = [completed(failed=failures, time=NOON + timedelta(hours=4 - failures)) for failures in (3, 2, 0)]
    completion = Folded(created(), *(ends[n] for n in order)).state.completion
    assert completion is not None
    assert (completion.failed, completion.at) == (0, ends[2].time)


@pytest.mark.parametrize("order", list(permutations([COMPLETED, AGAIN_COMPLETED, COMPLETED])))
def test_completion_of_later_run_holds(order: Sequence[Event]) -> None:
    completion = Folded(created(), *order).state.completion
    assert completion is not None
    assert (completion.run, completion.at, completion.output_csv_path) == (1, AGAIN_COMPLETED.time, "csv/1.csv")


@pytest.mark.parametrize("order", list(permutations([COMPLETED, expired(), forgotten()])))
def test_forgotten_request_expires_without_its_receiver(order: Sequence[Event]) -> None:
    state = Folded(created(webhook_url=RECEIVER, webhook_events=("image.failed",)), *order).state
    assert (state.phase, state.is_forgotten, state.webhook_url, state.webhook_events) == (Phase.EXPIRED, True, None, ())


def test_pending_webhook_of_forgotten_request_does_not_keep_it() -> None:
    state = Folded(created(webhook_url=RECEIVER), completed(webhook_url=RECEIVER), RECORDED[0], forgotten()).state
    assert state.webhook is None
    limits = Limits(timedelta(minutes=1), 3, timedelta(minutes=5), timedelta(days=1))
    task = next_task(REQUEST_ID, state, tuple, state.updated_at + timedelta(days=2), limits)
    assert isinstance(task, ProgressEvicted)


@pytest.mark.parametrize("order", list(permutations([expired(), retried(1)])))
def test_retry_of_expired_request_does_not_count(order: Sequence[Event]) -> None:
    request = Folded(created(), processed(requested()), completed())
    request.apply(*order)
    assert request.apply(retried(1)) == [], "no output CSV is due"
    assert (request.state.phase, request.state.run, request.state.is_completed) == (Phase.EXPIRED, 0, True)


def test_latest_round_of_reconciliation_counts() -> None:
    rounds = [rerequested(0, number) for number in (1, 2, 3)]
    for order in permutations(rounds):
        state = Folded(created(image_offsets={0: (0, 1)}), *order, *order).state
        assert (state.rounds, state.image_offsets, state.updated_at) == (3, {0: (0, 3)}, rounds[-1].time)


def test_latest_recorded_run_counts() -> None:
    for order in permutations(RECORDED):
        assert Folded(created(), *order).state.projected_run == 2


def test_lifecycle_needs_no_creation() -> None:
    """As where a log is read from some offset on."""
    life = Lifecycle()
    for event in (cancelled(), COMPLETED, retried(1)):
        life = advance(life, event)
    assert (life.run, life.phase) == (1, Phase.PROCESSING)


# --- webhook


@given(st.permutations([COMPLETED, DELIVERED, result(0, succeeds=True), COMPLETED, DELIVERED]))
def test_completion_webhook_and_results_come_in_any_order(order: Sequence[Event]) -> None:
    request = Folded(created(webhook_url=RECEIVER), *order)
    state, completion = request.state, request.state.completion
    assert completion is not None
    assert (completion.at, state.updated_at) == (COMPLETED.time, DELIVERED.time)
    assert (completion.output_csv_url, completion.output_csv_path) == (
        COMPLETED.output_csv_url,
        COMPLETED.output_csv_path,
    )
    assert (state.webhook, request.sums().succeeded) == ("delivered", 1)


@pytest.mark.parametrize(
    ("events", "webhook"),
    [
        ([COMPLETED, DELIVERED, UNDELIVERED], "delivered"),
        ([COMPLETED, UNDELIVERED], "failed"),
        ([COMPLETED], "pending"),
        ([COMPLETED.model_copy(update={"webhook_url": None})], None),
        ([], None),
        ([COMPLETED, DELIVERED, retried(1)], None),
    ],
)
def test_events_give_delivery_status(events: Sequence[Event], webhook: str | None) -> None:
    for order in permutations(events):
        assert Folded(created(webhook_url=RECEIVER), *order).state.webhook == webhook


# --- eviction


def test_evicted_request_leaves_a_tombstone() -> None:
    entry = Folded(created(), COMPLETED, evicted("evicted")).entry
    assert entry == Tombstone(0, evicted("evicted").time)


@pytest.mark.parametrize("event", [created(), *EVERY_FACT, evicted("evicted")])
def test_late_event_does_not_resurrect_evicted_request(event: Event) -> None:
    tombstone = Tombstone(2, NOON)
    assert evolve(tombstone, event) is tombstone
    assert not must_restore(tombstone, event)


def test_retry_keeps_request_from_earlier_eviction() -> None:
    state = Folded(created(), COMPLETED, retried(1)).state
    assert evolve(state, evicted("evicted", 0)) is state
    assert isinstance(evolve(state, evicted("evicted", 1)), Tombstone)


def test_only_a_tombstone_is_dropped() -> None:
    state = Folded(created(), COMPLETED).state
    assert evolve(state, evicted("tombstone_dropped")) is state
    assert evolve(Tombstone(0, NOON), evicted("tombstone_dropped")) is None
    assert evolve(Tombstone(1, NOON), evicted("tombstone_dropped", 0)) == Tombstone(1, NOON)


def test_later_retry_restores_evicted_request() -> None:
    state = Folded(created()).state
    assert must_restore(None, retried(1))
    assert must_restore(Tombstone(0, NOON), retried(1))
    assert not must_restore(Tombstone(1, NOON), retried(1))
    assert not must_restore(state, retried(1))
    assert not must_restore(replace(state, retried_run=1), retried(2))
    assert isinstance(state, RequestState)
