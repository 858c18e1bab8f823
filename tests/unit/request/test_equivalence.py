"""`evolve`, `Tally.settle` and `reactions` are the fold of before, at every order, repetition and crash point."""

from collections.abc import Iterable, Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streams.events import (
    Event,
    ImageFailed,
    ImageProcessed,
    RequestFilesRemoved,
    RequestRecorded,
    RequestRetried,
    WebhookDelivered,
    WebhookFailed,
)
from streams.progress import fold as fold_module
from streams.progress.fold import (
    RequestRow,
    decode_chunk,
    decode_row,
    done_at,
    done_run,
    fold,
    images_due,
    is_done,
    must_return,
    output_due,
    row_key,
    split_key,
)
from streams.request import reactions as reactions_module
from streams.request import tally as tally_module
from streams.request.lifecycle import RequestState, Tombstone, evolve, must_restore
from streams.request.reactions import reactions
from streams.request.tally import EMPTY, Tally, chunk_count, chunk_of
from tests.examples import NOON, REQUEST_ID, completed, created
from tests.unit.test_fold import (
    CRASHES,
    FAILING,
    RANDOMS,
    RECEIVER,
    TOTALS,
    Crash,
    Table,
    cancelled,
    delivered,
    expired,
    helped,
    retried,
    told,
    told_webhook,
    write,
)


class Both:
    """The table of before and, beside it, the request as objects; every step compares them."""

    def __init__(self) -> None:
        self.table: Table = {}
        self.state: RequestState | Tombstone | None = None
        self.tallies: dict[int, Tally] = {}

    def copy(self) -> "Both":
        other = Both()
        other.table, other.state, other.tallies = dict(self.table), self.state, dict(self.tallies)
        return other

    def apply(self, event: Event) -> None:
        assert must_return(event, self.table.get) == must_restore(self.state, event)
        changes = fold(event, self.table.get)
        write(changes, self.table)
        before = self.state, self.tallies.copy()
        if isinstance(event, ImageProcessed | ImageFailed):
            if not isinstance(self.state, Tombstone):
                number, position = chunk_of(event.index)
                tally = self.tallies.get(number, EMPTY)
                settled = tally.settle(position, event)
                assert (settled is tally) == (changes == {})
                if settled is not tally:
                    self.tallies[number] = settled
        else:
            self.state = evolve(self.state, event)
            if isinstance(self.state, Tombstone):
                self.tallies.clear()
            assert (self.state is before[0]) == (changes == {})
        self.compare()

    def compare(self) -> None:
        value = self.table.get(row_key(REQUEST_ID))
        if is_done(value):
            assert isinstance(self.state, Tombstone)
            assert (self.state.run, self.state.evicted_at) == (done_run(value), done_at(value))
        elif value is None:
            assert self.state is None
        else:
            assert isinstance(self.state, RequestState)
            assert facts_of_state(self.state) == facts_of_row(decode_row(value))
        tallies = {number: value for key, value in self.table.items() if (number := split_key(key)[1]) is not None}
        assert self.tallies == {number: Tally(*decode_chunk(value)) for number, value in tallies.items()}

    def due(self, event: Event) -> list[Event]:
        output = output_due(event, self.table.get)
        before = [*images_due(event, self.table.get), *([output] if output else [])]

        def tallies() -> Iterable[Tally]:
            assert isinstance(self.state, RequestState)
            return [self.tallies.get(number, EMPTY) for number in range(chunk_count(self.state.total))]

        tally = None
        if isinstance(event, ImageProcessed | ImageFailed):
            tally = self.tallies.get(chunk_of(event.index)[0], EMPTY)
        after = list(reactions(event, self.state, tally, tallies))
        assert after == before
        return before


def facts_of_row(row: RequestRow) -> dict[str, Any]:
    completion = None
    if row.completed_run is not None:
        completion = (
            row.completed_run,
            row.completed_at,
            row.completed_failed,
            row.output_csv_url,
            row.output_csv_path,
        )
    return {
        "total": row.total,
        "header": row.header,
        "owner": row.owner,
        "times": (row.created_at, row.updated_at, row.requested_at),
        "runs": (row.run, row.cancelled_run, row.recorded_run, row.asked_run, row.heals),
        "completion": completion,
        "ended": (row.is_completed, row.is_cancelled, row.files_removed),
        "webhook": (row.webhook_url, row.webhook_events or (), row.webhook_standing, row.webhook),
        "offsets": row.image_offsets,
        "traceparent": row.traceparent,
    }


def facts_of_state(state: RequestState) -> dict[str, Any]:
    end = state.completion
    completion = end and (end.run, end.at, end.failed, end.output_csv_url, end.output_csv_path)
    return {
        "total": state.total,
        "header": state.header,
        "owner": state.owner,
        "times": (state.created_at, state.updated_at, state.requested_at),
        "runs": (state.run, state.cancelled_run, state.recorded_run, state.requested_run, state.rounds),
        "completion": completion,
        "ended": (state.is_completed, state.is_cancelled, state.is_expired),
        "webhook": (state.webhook_url, state.webhook_events, state.delivery, state.webhook),
        "offsets": state.image_offsets,
        "traceparent": state.traceparent,
    }


def run_with_crashes(events: Sequence[Event], crashes: Sequence[Crash]) -> None:
    """Both tables under ``kill -9``: each restarts from some earlier state, and the events since are redelivered."""
    both = Both()
    history = [both.copy()]
    plan = {crash.step: crash for crash in crashes}
    place = step = 0
    while place < len(events):
        crash = plan.pop(step, None)
        step += 1
        if crash is None or crash.stage > 0:
            both.apply(events[place])
        if crash is None or crash.stage > 1:
            both.due(events[place])
        if crash is None:
            place += 1
            history.append(both.copy())
            continue
        place = max(0, place - crash.uncommitted)
        # The changelog has what was written up to the commit, and some of what was written since.
        both = history[max(place, len(history) - 1 - crash.unsent)].copy()
        del history[place + 1 :]
        history[place] = both.copy()


EVERYTHING: list[Event] = [
    completed(webhook_url=RECEIVER),
    completed(webhook_url=RECEIVER, failed=0),
    completed(run=1, failed=2, output_csv_path="csv/1.csv").model_copy(update={"time": NOON}),
    told_webhook(WebhookFailed, 300),
    told_webhook(WebhookDelivered, 301).model_copy(update={"run": 1}),
    *(helped(run, heal) for run, heal in ((0, 1), (0, 2), (1, 0), (1, 1))),
    *(RequestRecorded(request_id=REQUEST_ID, run=run) for run in (0, 1)),
    *(cancelled(run) for run in (0, 1)),
    *(retried(run) for run in (1, 2)),
    *(expired("done", run) for run in (0, 1)),
    *(expired("forgotten", run) for run in (0, 1)),
]


@settings(deadline=None, max_examples=40)
@given(RANDOMS, TOTALS, FAILING, st.sampled_from([0.0, 0.2, 1.0]), st.booleans())
def test_results_in_any_order_give_the_same_state(
    random: Random, total: int, failing: float, repeats: float, retry: bool
) -> None:
    story = told(random, total, failing=failing, retried=retry)
    both = Both()
    for event in delivered(random, story.events, repeats):
        both.apply(event)
        both.due(event)


@settings(deadline=None, max_examples=200)
@given(RANDOMS, st.integers(1, 20), FAILING, st.booleans(), CRASHES)
@example(Random(1), 1, 0.0, False, [Crash(1, 1, 0, 0)])
@example(Random(1), 9, 0.0, False, [Crash(9, 1, 0, 0), Crash(10, 1, 5, 0)])
def test_every_event_at_every_crash_gives_the_same_state(
    random: Random, total: int, failing: float, retry: bool, crashes: list[Crash]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for module in (fold_module, tally_module):
            patch.setattr(module, "IMAGES_PER_CHUNK", 4)  # several chunks without thousands of events
        for module in (fold_module, reactions_module):
            patch.setattr(module, "IMAGES_PER_MESSAGE", 2)
        story = told(random, total, failing=failing, retried=retry)
        asked_for = created(total=total, webhook_url=RECEIVER, webhook_events=random.choice([(), ("image.failed",)]))
        told_of = random.sample(EVERYTHING, k=random.randint(0, len(EVERYTHING)))
        run_with_crashes(delivered(random, [asked_for, *story.events[1:], *told_of], 0.3), crashes)


@pytest.mark.parametrize("retry_first", [False, True])
def test_expired_requests_are_the_same(retry_first: bool) -> None:
    gone = RequestFilesRemoved(request_id=REQUEST_ID, time=NOON)
    retry = RequestRetried(request_id=REQUEST_ID, run=1, created_at=NOON, time=NOON)
    both = Both()
    for event in (created(), completed(), *((retry, gone) if retry_first else (gone,))):
        both.apply(event)
        both.due(event)
