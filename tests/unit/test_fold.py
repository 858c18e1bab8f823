"""The progress fold: whatever is delivered twice, late, early or again after a crash, each image counts once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import permutations
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streams.events import (
    Event,
    ImageFailed,
    ImageProcessed,
    ImagesRequestedAgain,
    OutputCsvRequested,
    RequestCancelled,
    RequestCreated,
    RequestExpired,
    RequestFilesRemoved,
    RequestRecorded,
    RequestRetried,
    WebhookAttempted,
    WebhookDelivered,
    WebhookFailed,
)
from streams.progress import fold as fold_module
from streams.progress.fold import (
    Changes,
    Sums,
    add_up,
    chunk_count,
    chunk_key,
    decode_chunk,
    decode_row,
    fold,
    images_due,
    is_done,
    must_return,
    output_due,
    row_key,
    split_key,
)
from tests.support.examples import HEADER, NOON, REQUEST_ID, completed, created, failed, processed, requested

RECEIVER = "https://receiver.example/hook"

Table = dict[bytes, bytes]
Result = ImageProcessed | ImageFailed

# A result of every kind is made once and copied: making thousands anew takes most of a test's time.
PROCESSED, FAILED = processed(requested()), failed(requested())


def result(index: int, *, succeeds: bool, attempt: int = 0, input_bytes: int = 0, output_bytes: int = 0) -> Result:
    common = {"index": index, "attempt": attempt, "time": NOON + timedelta(hours=attempt, seconds=index + 1)}
    if succeeds:
        return PROCESSED.model_copy(update={**common, "input_bytes": input_bytes, "output_bytes": output_bytes})
    return FAILED.model_copy(update=common)


def cancelled(run: int = 0, minutes: int = 10) -> RequestCancelled:
    return RequestCancelled(request_id=REQUEST_ID, run=run, time=NOON + timedelta(hours=run, minutes=minutes))


def retried(run: int) -> RequestRetried:
    return RequestRetried(request_id=REQUEST_ID, run=run, created_at=NOON, time=NOON + timedelta(hours=run))


def write(changes: Changes, table: Table) -> None:
    for key, value in changes.items():
        if value is None:
            table.pop(key, None)
        else:
            table[key] = value


def apply(events: Iterable[Event], table: Table) -> list[OutputCsvRequested]:
    """What the progress app does with its input; returns the output CSVs it asked for."""
    asked = []
    for event in events:
        write(fold(event, table.get), table)
        due = output_due(event, table.get)
        if due is not None:
            asked.append(due)
    return asked


def sums(table: Table, run: int = 0) -> Sums:
    return add_up((decode_chunk(value) for key, value in table.items() if split_key(key)[1] is not None), run)


@dataclass
class Story:
    """A request, what came of its images at the first try, and of the failed ones at the second."""

    total: int
    first: list[Result] = field(default_factory=list)
    second: list[Result] = field(default_factory=list)

    @property
    def created(self) -> RequestCreated:
        return created(total=self.total, rows=self.total, owner="shop", webhook_url=RECEIVER)

    @property
    def retry(self) -> list[RequestRetried]:
        return [retried(1)] if self.second else []

    @property
    def events(self) -> list[Event]:
        return [self.created, *self.first, *self.retry, *self.second]

    def expected(self) -> tuple[int, int, int, int]:
        """Succeeded, failed, input and output bytes: counted image by image, without chunks and bits."""
        final = {result.index: result for result in (*self.first, *self.second)}
        done = [result for result in final.values() if isinstance(result, ImageProcessed)]
        return (
            len(done),
            len(final) - len(done),
            sum(result.input_bytes for result in done),
            sum(result.output_bytes for result in done),
        )


def told(random: Random, total: int, *, failing: float, retried: bool) -> Story:
    def outcome(index: int, attempt: int) -> Result:
        size = random.choice((0, 1, 10**6, 2**40 - 1))
        succeeds = random.random() >= failing
        return result(index, attempt=attempt, succeeds=succeeds, input_bytes=size, output_bytes=size // 3)

    story = Story(total, [outcome(index, 0) for index in range(total)])
    if retried:
        story.second = [outcome(result.index, 1) for result in story.first if isinstance(result, ImageFailed)]
    return story


def delivered(random: Random, events: Sequence[Event], repeats: float) -> list[Event]:
    """The events in some order, some of them more than once.

    But nothing of the requests topic before the RequestCreated, which is the first of its request there.
    """
    deck = [*events, *random.choices(events, k=int(len(events) * repeats))]
    random.shuffle(deck)
    on_requests = [place for place, event in enumerate(deck) if event.topic == "requests"]
    creations = [place for place in on_requests if isinstance(deck[place], RequestCreated)]
    if creations:
        deck[on_requests[0]], deck[creations[0]] = deck[creations[0]], deck[on_requests[0]]
    return deck


# By their seed: drawn number by number, thousands of images would be more than hypothesis is willing to draw.
RANDOMS = st.builds(Random, st.integers(0, 2**32))
TOTALS = st.integers(1, 12) | st.sampled_from([999, 1000, 1001, 1999, 2000, 2001, 3000]) | st.integers(1, 3000)
FAILING = st.sampled_from([0.0, 0.1, 0.5, 1.0])


# --- any order, any repetition


@settings(deadline=None, max_examples=40)
@given(RANDOMS, TOTALS, FAILING, st.sampled_from([0.0, 0.2, 1.0]))
def test_in_any_order_and_with_any_repeats_the_output_is_asked_for_exactly_when_every_image_is_settled(
    random: Random, total: int, failing: float, repeats: float
) -> None:
    story = told(random, total, failing=failing, retried=False)
    missing = {event.id for event in story.events}
    table: Table = {}
    asked = []
    for event in delivered(random, story.events, repeats):
        missing.discard(event.id)
        (due,) = apply([event], table) or (None,)
        assert (due is None) == bool(missing), "asked for too early, or not at all"
        asked.append(due)
    first, *others = filter(None, asked)
    assert (first.succeeded, first.failed, first.input_bytes, first.output_bytes) == story.expected()
    assert (first.total, first.header, first.owner, first.webhook_url) == (total, HEADER, "shop", RECEIVER)
    assert first.time == NOON + timedelta(seconds=total), "the time of the last result"
    assert all(other == first and other.id == first.id for other in others)


@settings(deadline=None, max_examples=40)
@given(RANDOMS, TOTALS, FAILING, st.sampled_from([0.0, 0.5]))
def test_a_retry_counts_each_image_once_in_whatever_order_both_runs_arrive(
    random: Random, total: int, failing: float, repeats: float
) -> None:
    story = told(random, total, failing=failing, retried=True)
    in_order: Table = {}
    apply(story.events, in_order)
    table: Table = {}
    due = apply(delivered(random, story.events, repeats), table)[-1]
    assert (due.succeeded, due.failed, due.input_bytes, due.output_bytes) == story.expected()
    assert table == in_order, "the same bytes, whatever the order"


@settings(deadline=None, max_examples=40)
@given(RANDOMS, TOTALS, FAILING)
def test_a_repeat_writes_nothing(random: Random, total: int, failing: float) -> None:
    story = told(random, total, failing=failing, retried=True)
    table: Table = {}
    apply(delivered(random, story.events, 0), table)
    assert [fold(event, table.get) for event in story.events] == [{}] * len(story.events)


@settings(deadline=None, max_examples=40)
@given(RANDOMS, TOTALS, FAILING)
def test_at_every_moment_what_is_counted_is_what_has_arrived(random: Random, total: int, failing: float) -> None:
    story = told(random, total, failing=failing, retried=False)
    cut = random.randint(0, total)
    arrived = delivered(random, story.first, 0)[:cut]
    table: Table = {}
    apply(arrived, table)
    done = [result for result in arrived if isinstance(result, ImageProcessed)]
    counted = sums(table)
    assert (counted.succeeded, counted.failed) == (len(done), cut - len(done))
    assert counted.settled == cut
    assert counted.input_bytes == sum(result.input_bytes for result in done)


@pytest.mark.parametrize("order", list(permutations(range(2))))
def test_a_success_outlives_a_failure_of_the_same_attempt(order: tuple[int, int]) -> None:
    # A worker said that the image failed, died, and the next one got it.
    outcomes = [result(0, succeeds=False), result(0, succeeds=True, input_bytes=9, output_bytes=4)]
    table: Table = {}
    due = apply([created(), *(outcomes[n] for n in order)], table)[-1]
    assert (due.succeeded, due.failed, due.input_bytes, due.output_bytes) == (1, 0, 9, 4)


def test_what_has_failed_waits_again_once_a_result_of_the_retry_is_there() -> None:
    table: Table = {}
    apply([created(total=2), *(result(index, succeeds=False) for index in range(2))], table)
    assert sums(table).failed == 2
    apply([result(0, succeeds=True, attempt=1)], table)
    assert (sums(table).succeeded, sums(table).failed) == (1, 0)
    assert apply([result(1, succeeds=False)], table) == [], "the first run's failure is no answer to the second"
    (due,) = apply([result(1, succeeds=False, attempt=1)], table)
    assert (due.succeeded, due.failed) == (1, 1)


def test_a_success_after_the_completion_asks_for_the_output_csv_once_more() -> None:
    """As a worker tells it that had lost its partition, and whose slow download another worker gave up."""
    table: Table = {}
    (first,) = apply([created(total=2), result(0, succeeds=True), result(1, succeeds=False)], table)
    done = completed(total=2, succeeded=1, failed=1)
    assert apply([done, result(1, succeeds=False)], table) == []
    late = result(1, succeeds=True)
    (second,) = apply([late], table)
    assert (first.failed, second.failed, second.run) == (1, 0, 0)
    assert apply([done, late], table) == [second], "asked again after a crash"
    assert apply([completed(total=2, succeeded=2, failed=0), late, done], table) == []


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_of_the_completions_of_a_run_the_one_with_the_fewest_failures_holds(order: tuple[int, ...]) -> None:
    ends = [completed(failed=failures, time=NOON + timedelta(hours=4 - failures)) for failures in (3, 2, 0)]
    table: Table = {}
    apply([created(), *(ends[n] for n in order)], table)
    row = decode_row(table[row_key(REQUEST_ID)])
    assert (row.completed_failed, row.completed_at) == (0, ends[2].time)


def test_requests_do_not_touch_each_other() -> None:
    table: Table = {}
    apply([created("one"), created("two"), result(0, succeeds=True).model_copy(update={"request_id": "one"})], table)
    assert {split_key(key) for key in table} == {("one", None), ("one", 0), ("two", None)}


# --- crashes


@dataclass(frozen=True)
class Crash:
    """The process dies at an event (counted over all deliveries).

    ``stage``: before its record is written, before the output CSV is asked for, or before the offset is committed.
    ``uncommitted``: how many events back the last commit was. ``unsent``: how many of the records written since
    had not reached the changelog.
    """

    step: int
    stage: int
    uncommitted: int
    unsent: int


CRASHES = st.lists(
    st.builds(Crash, st.integers(0, 60), st.integers(0, 2), st.integers(0, 20), st.integers(0, 20)), max_size=6
)


def replayed(changelog: Iterable[tuple[int, bytes, bytes | None]]) -> Table:
    table: Table = {}
    for _, key, value in changelog:
        write({key: value}, table)
    return table


def apply_with_crashes(events: Sequence[Event], crashes: Sequence[Crash]) -> tuple[Table, list[OutputCsvRequested]]:
    """The progress app under ``kill -9``: its table is what the changelog has, its input goes on at the last commit."""
    changelog: list[tuple[int, bytes, bytes | None]] = []  # with the place of the event that wrote it
    asked: list[OutputCsvRequested] = []
    plan = {crash.step: crash for crash in crashes}
    place = step = 0
    while place < len(events):
        crash = plan.pop(step, None)
        step += 1
        event = events[place]
        table = replayed(changelog)
        if crash is None or crash.stage > 0:
            changes = fold(event, table.get)
            assert len(changes) <= 1, "a kill between two writes would tear them apart"
            changelog += [(place, key, value) for key, value in changes.items()]
            write(changes, table)
        if crash is None or crash.stage > 1:
            due = output_due(event, table.get)
            if due is not None:
                asked.append(due)
        if crash is None:
            place += 1
            continue
        place = max(0, place - crash.uncommitted)
        committed = sum(written_at < place for written_at, _, _ in changelog)
        del changelog[max(committed, len(changelog) - crash.unsent) :]
    return replayed(changelog), asked


@settings(deadline=None, max_examples=200)
@given(RANDOMS, st.integers(1, 20), FAILING, st.booleans(), CRASHES)
# The last image's record is written, and the process dies before it asks for the output CSV.
@example(Random(1), 1, 0.0, False, [Crash(1, 1, 0, 0)])
@example(Random(1), 9, 0.0, False, [Crash(9, 1, 0, 0), Crash(10, 1, 5, 0)])
def test_a_process_that_is_killed_at_any_moment_leaves_nothing_uncounted_and_nothing_counted_twice(
    random: Random, total: int, failing: float, retried: bool, crashes: list[Crash]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fold_module, "IMAGES_PER_CHUNK", 4)  # several chunks without thousands of events
        story = told(random, total, failing=failing, retried=retried)
        events = delivered(random, story.events, 0.2)
        undisturbed: Table = {}
        asked_undisturbed = apply(events, undisturbed)
        table, asked = apply_with_crashes(events, crashes)
    assert table == undisturbed
    assert asked[-1] == asked_undisturbed[-1]
    assert {due.id for due in asked} == {due.id for due in asked_undisturbed}
    assert (asked[-1].succeeded, asked[-1].failed, asked[-1].input_bytes, asked[-1].output_bytes) == story.expected()


# --- sizes


@pytest.mark.parametrize("total", [1_000, 10_000, 100_000])
def test_what_is_read_and_written_for_an_image_does_not_grow_with_the_request(total: int) -> None:
    """Every image of the request, one after the other, each with the dearest numbers."""
    table: Table = {}
    reads = 0

    def read(key: bytes) -> bytes | None:
        nonlocal reads
        reads += 1
        return table.get(key)

    apply([created(total=total)], table)
    row = len(table[row_key(REQUEST_ID)])
    largest = most_reads = 0
    template = PROCESSED.model_copy(update={"input_bytes": 2**40 - 1, "output_bytes": 2**40 - 1})
    for index in range(total):
        # model_copy would take most of this test's time
        event = ImageProcessed.model_construct(**{**template.__dict__, "index": index})
        reads = 0
        ((key, value),) = fold(event, read).items()
        assert value is not None
        table[key] = value
        due = output_due(event, read)
        largest = max(largest, len(key) + len(value))
        if (index + 1) % 1000:
            most_reads = max(most_reads, reads)
    key_length = len(chunk_key(REQUEST_ID, chunk_count(total)))
    assert largest <= 36 + 250 + key_length, f"{largest} bytes for one image"
    assert most_reads <= 5
    assert due is not None
    assert due.input_bytes == total * (2**40 - 1)
    assert len(table[row_key(REQUEST_ID)]) == row, "the row says nothing of single images"
    assert len(table) == 1 + total // 1000


# --- cancel and retry


@settings(deadline=None, max_examples=60)
@given(RANDOMS, st.integers(2, 20), FAILING, st.sampled_from([0.0, 0.5]))
def test_whatever_order_commands_results_and_completions_come_in_the_state_is_the_same(
    random: Random, total: int, failing: float, repeats: float
) -> None:
    story = told(random, total, failing=failing, retried=True)
    told_of_the_run = [
        completed(webhook_url=RECEIVER),
        told_webhook(WebhookFailed, 300),
        told_webhook(WebhookDelivered, 301).model_copy(update={"run": 1}),
        *(helped(run, heal) for run, heal in ((0, 1), (0, 2), (1, 0), (1, 1))),
        *(RequestRecorded(request_id=REQUEST_ID, run=run) for run in (0, 1)),
        cancelled(0),
        cancelled(1),
        retried(1),
        retried(2),
    ]
    events = [*story.events, *random.sample(told_of_the_run, k=random.randint(0, len(told_of_the_run)))]
    in_order: Table = {}
    apply(events, in_order)
    table: Table = {}
    # Only what follows from the creation is told of it.
    apply([story.created, *delivered(random, events, repeats)], table)
    assert table == in_order, "the same bytes, whatever the order"
    assert [fold(event, table.get) for event in events] == [{}] * len(events), "a repeat writes nothing"


@settings(deadline=None, max_examples=40)
@given(RANDOMS, st.integers(1, 20), FAILING, st.sampled_from([0.0, 0.5]))
def test_results_after_the_cancel_do_not_complete_the_request(
    random: Random, total: int, failing: float, repeats: float
) -> None:
    story = told(random, total, failing=failing, retried=False)
    table: Table = {}
    late = random.randint(0, total - 1)  # at least one comes after the cancel
    apply([story.created, *story.first[:late], cancelled()], table)
    assert apply(delivered(random, [*story.events, cancelled()], repeats), table) == []
    row = decode_row(table[row_key(REQUEST_ID)])
    assert row.is_cancelled
    assert not row.is_completed
    assert (sums(table).succeeded, sums(table).failed) == story.expected()[:2], "what was done counts"


@pytest.mark.parametrize("order", list(permutations(range(2))))
def test_a_run_that_completed_all_the_same_is_complete(order: Sequence[int]) -> None:
    ends = [completed(), cancelled()]
    table: Table = {}
    apply([created(), *(ends[n] for n in order)], table)
    row = decode_row(table[row_key(REQUEST_ID)])
    assert (row.is_completed, row.is_cancelled) == (True, False)


def test_a_cancelled_request_that_is_retried_waits_for_all_that_has_not_succeeded() -> None:
    table: Table = {}
    apply([created(total=3), result(0, succeeds=True), result(1, succeeds=False), cancelled()], table)
    assert apply([retried(1)], table) == []
    assert not decode_row(table[row_key(REQUEST_ID)]).is_cancelled
    assert sums(table, run=1).settled == 1
    assert apply([cancelled(), result(2, succeeds=False)], table) == [], "both are about the run before"
    assert apply([result(1, succeeds=True, attempt=1)], table) == []
    (due,) = apply([result(2, succeeds=False, attempt=1)], table)
    assert (due.run, due.succeeded, due.failed) == (1, 2, 1)


def test_a_retry_with_nothing_left_to_do_asks_for_its_output_at_once() -> None:
    table: Table = {}
    apply([created(total=1), cancelled(), result(0, succeeds=True)], table)
    (due,) = apply([retried(1)], table)
    assert (due.run, due.succeeded, due.time) == (1, 1, retried(1).time)


# --- messages about images


def settled_blocks(events: Sequence[Event], total: int, before: int) -> list[tuple[int, int, int]]:
    """Run, first image and number of images of each block that a receiver is told of, a repeat once.

    ``before``: how many of the events come before their request.
    """
    table: Table = {}
    told = {}
    request = created(total=total, rows=total, webhook_url=RECEIVER, webhook_events=("image.failed",))
    for event in [*events[:before], request, *events[before:], *events[-1:]]:
        apply([event], table)
        told.update({one.id: one for one in images_due(event, table.get)})
    assert all(one.webhook_events == ("image.failed",) for one in told.values())
    return sorted((one.run, one.first, one.count) for one in told.values())


@given(
    st.permutations([result(index, succeeds=index % 3 > 0) for index in range(230)]),
    st.integers(0, 230),
    st.integers(0, 230),
)
@settings(max_examples=20)
def test_each_hundred_images_is_told_of_once_all_have_their_result(
    order: Sequence[Event], known: int, before: int
) -> None:
    indexes = {event.index for event in order[:known] if isinstance(event, ImageProcessed | ImageFailed)}
    blocks = [(0, first, count) for first, count in ((0, 100), (100, 100), (200, 30))]
    assert settled_blocks(order[:known], 230, before) == [
        (run, first, count) for run, first, count in blocks if indexes >= set(range(first, first + count))
    ]


def test_without_a_wish_nobody_is_told_of_images() -> None:
    table: Table = {}
    events = [created(webhook_url=RECEIVER), result(0, succeeds=True)]
    apply(events, table)
    assert [list(images_due(event, table.get)) for event in events] == [[], []]


# --- completion and webhook


def told_webhook(kind: type[WebhookDelivered] | type[WebhookFailed], minutes: int) -> Event:
    fields = {"request_id": REQUEST_ID, "webhook_id": "msg_1", "attempts": 1, "reason": "http_500"}
    return kind.model_validate({**fields, "time": NOON + timedelta(minutes=minutes)})


def helped(run: int, heal: int) -> ImagesRequestedAgain:
    return ImagesRequestedAgain(
        request_id=REQUEST_ID,
        run=run,
        heal=heal,
        missing=1,
        image_offsets={0: (run, heal)},
        time=NOON + timedelta(hours=run, minutes=heal),
    )


DELIVERED, UNDELIVERED = told_webhook(WebhookDelivered, 3), told_webhook(WebhookFailed, 2)
COMPLETED = completed(webhook_url=RECEIVER, total=1, succeeded=1, failed=0)
AGAIN_COMPLETED = completed(run=1, time=NOON + timedelta(minutes=5), webhook_url=RECEIVER, output_csv_path="csv/1.csv")


@given(st.permutations([COMPLETED, DELIVERED, result(0, succeeds=True), COMPLETED, DELIVERED]))
def test_completion_webhook_and_results_may_come_in_any_order(order: Sequence[Event]) -> None:
    table: Table = {}
    apply([created(webhook_url=RECEIVER), *order], table)
    row = decode_row(table[row_key(REQUEST_ID)])
    assert row.is_completed
    assert (row.completed_at, row.updated_at) == (COMPLETED.time, DELIVERED.time)
    assert (row.output_csv_url, row.output_csv_path) == (COMPLETED.output_csv_url, COMPLETED.output_csv_path)
    assert row.webhook == "delivered"
    assert sums(table).succeeded == 1


@pytest.mark.parametrize("order", list(permutations([COMPLETED, DELIVERED, UNDELIVERED])))
def test_a_receiver_that_confirmed_has_confirmed_whatever_else_is_said(order: Sequence[Event]) -> None:
    table: Table = {}
    apply([created(webhook_url=RECEIVER), *order], table)
    assert decode_row(table[row_key(REQUEST_ID)]).webhook == "delivered"


@pytest.mark.parametrize("order", list(permutations([COMPLETED, UNDELIVERED])))
def test_a_receiver_that_was_given_up_is_failed(order: Sequence[Event]) -> None:
    table: Table = {}
    apply([created(webhook_url=RECEIVER), *order], table)
    assert decode_row(table[row_key(REQUEST_ID)]).webhook == "failed"


@pytest.mark.parametrize(("receiver", "webhook"), [(RECEIVER, "pending"), (None, None)])
def test_a_webhook_is_pending_from_the_completion_on_if_there_is_a_receiver(
    receiver: str | None, webhook: str | None
) -> None:
    table: Table = {}
    apply([created(webhook_url=receiver)], table)
    assert decode_row(table[row_key(REQUEST_ID)]).webhook is None
    apply([COMPLETED.model_copy(update={"webhook_url": receiver})], table)
    assert decode_row(table[row_key(REQUEST_ID)]).webhook == webhook


@pytest.mark.parametrize("order", list(permutations([COMPLETED, AGAIN_COMPLETED, COMPLETED])))
def test_the_completion_of_the_later_run_is_the_one_that_stays(order: Sequence[Event]) -> None:
    table: Table = {}
    apply([created(webhook_url=RECEIVER), *order], table)
    row = decode_row(table[row_key(REQUEST_ID)])
    assert (row.completed_run, row.completed_at, row.output_csv_path) == (1, AGAIN_COMPLETED.time, "csv/1.csv")


def test_nothing_more_is_asked_for_once_the_request_is_complete() -> None:
    table: Table = {}
    events = [created(), result(0, succeeds=True)]
    assert len(apply(events, table)) == 1
    apply([COMPLETED], table)
    assert apply(events, table) == []


def test_a_second_creation_changes_nothing() -> None:
    table: Table = {}
    apply([created(), COMPLETED], table)
    assert fold(created(owner="somebody else"), table.get) == {}


# --- a request that leaves the table, and one that is helped


def expired(stage: str, run: int = 0) -> RequestExpired:
    return RequestExpired.model_validate(
        {"request_id": REQUEST_ID, "time": NOON + timedelta(days=8), "stage": stage, "run": run}
    )


@settings(deadline=None, max_examples=40)
@given(RANDOMS, st.sampled_from([1, 999, 1000, 2001]))
def test_a_request_that_left_the_table_is_not_brought_back_by_whatever_comes_late(random: Random, total: int) -> None:
    story = told(random, total, failing=0.5, retried=True)
    run = len(story.retry)
    done = [*story.events, COMPLETED, cancelled()]
    table: Table = {}
    apply([*done, expired("done", run)], table)
    assert list(table) == [row_key(REQUEST_ID)], "only a mark stays"
    assert is_done(table[row_key(REQUEST_ID)])
    late = [*done, DELIVERED, expired("done", run)]
    assert [fold(event, table.get) for event in late] == [{}] * len(late)
    assert [output_due(event, table.get) for event in late] == [None] * len(late)
    assert not any(must_return(event, table.get) for event in late)
    apply([expired("forgotten", run)], table)
    assert table == {}


def test_a_retry_brings_a_request_back_that_left_the_table_before_it_and_keeps_one_that_is_there() -> None:
    table: Table = {}
    apply([created(), result(0, succeeds=False), COMPLETED, expired("done")], table)
    assert must_return(retried(1), table.get)
    apply([expired("forgotten")], table)
    assert must_return(retried(1), table.get)
    # As it is built anew: one topic after the other.
    apply([created(), COMPLETED, retried(1), result(0, succeeds=False), expired("done"), expired("forgotten")], table)
    assert not must_return(retried(1), table.get)
    assert decode_row(table[row_key(REQUEST_ID)]).run == 1
    assert sums(table, run=1) == Sums(updated_ms=sums(table).updated_ms)


def test_a_kill_while_a_request_leaves_the_table_is_repaired_by_the_redelivery() -> None:
    story = told(Random(3), 2001, failing=0.1, retried=False)
    whole: Table = {}
    apply([*story.events, COMPLETED], whole)
    changes = list(fold(expired("done"), whole.get).items())
    assert len(changes) == 4
    for written in range(len(changes) + 1):
        table = dict(whole)
        write(dict(changes[:written]), table)
        apply([expired("done")], table)
        assert list(table) == [row_key(REQUEST_ID)]


def test_only_a_request_that_left_the_table_is_forgotten() -> None:
    table: Table = {}
    apply([created(), COMPLETED], table)
    assert fold(expired("forgotten"), table.get) == {}


def test_the_latest_help_is_the_one_that_counts() -> None:
    helps: list[Event] = [
        ImagesRequestedAgain(
            request_id=REQUEST_ID, time=NOON + timedelta(hours=n), heal=n, missing=1, image_offsets={0: (n, n + 1)}
        )
        for n in (1, 2, 3)
    ]
    for order in permutations(helps):
        table: Table = {}
        apply([created(image_offsets={0: (0, 1)}), *order, *order], table)
        row = decode_row(table[row_key(REQUEST_ID)])
        assert (row.heals, row.image_offsets, row.updated_at) == (3, {0: (3, 4)}, NOON + timedelta(hours=3))


def test_the_latest_recorded_run_is_the_one_that_counts() -> None:
    for order in permutations([RequestRecorded(request_id=REQUEST_ID, run=run) for run in (0, 1, 2)]):
        table: Table = {}
        apply([created(), *order], table)
        assert decode_row(table[row_key(REQUEST_ID)]).recorded_run == 2


def test_what_does_not_concern_progress_writes_nothing() -> None:
    attempted = WebhookAttempted(request_id=REQUEST_ID, webhook_id="msg_1", attempt=1, milliseconds=5)
    for event in (requested(), attempted, OutputCsvRequested(**{**COMPLETED.model_dump(), "header": HEADER})):
        assert fold(event, Table().get) == {}
        assert output_due(event, Table().get) is None


def test_removed_files_are_noted_once_and_bring_nobody_back() -> None:
    table: Table = {}
    gone = RequestFilesRemoved(request_id=REQUEST_ID, time=NOON + timedelta(days=30))
    assert fold(gone, table.get) == {}, "there is no such request"
    for event in (created(), processed(requested()), completed(), gone):
        write(fold(event, table.get), table)
    assert decode_row(table[row_key(REQUEST_ID)]).files_removed
    assert decode_row(table[row_key(REQUEST_ID)]).is_completed
    assert fold(gone, table.get) == {}, "a repeat"
    write(fold(RequestExpired(request_id=REQUEST_ID, time=NOON, stage="done"), table.get), table)
    assert fold(gone, table.get) == {}, "it has left the table"


@pytest.mark.parametrize("retry_first", [False, True])
def test_a_retry_accepted_while_the_files_are_being_removed_does_not_count(retry_first: bool) -> None:
    table: Table = {}
    gone = RequestFilesRemoved(request_id=REQUEST_ID, time=NOON + timedelta(days=30))
    retry = RequestRetried(request_id=REQUEST_ID, run=1, created_at=NOON, time=NOON + timedelta(days=30))
    for event in (created(), processed(requested()), completed(), *((retry, gone) if retry_first else (gone, retry))):
        write(fold(event, table.get), table)
    row = decode_row(table[row_key(REQUEST_ID)])
    assert (row.files_removed, row.run, row.is_completed) == (True, 0, True)
    assert output_due(retry, table.get) is None
