"""Write timestamps, under Cassandra's rule: the later timestamp wins each cell, of equal ones the greater value."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from cassandra.query import UNSET_VALUE
from hypothesis import given
from hypothesis import strategies as st

from infra.cassandra.insert import Insert
from infra.cassandra.session import microseconds
from streams.events.base import Event
from streams.events.images import ImageFailed, ImageProcessed
from streams.events.requests import RequestCompleted, RequestStopped
from streams.projections.history import tables
from streams.projections.history.write_clock import RUN, WriteClock
from streams.request.webhook import DeliveryStatus
from tests.support.examples import NOON, completed, failed, processed, requested

CLOCKS = st.sampled_from([WriteClock(), WriteClock(NOON + timedelta(days=3))])
SKEW = st.timedeltas(timedelta(seconds=-60), timedelta(seconds=60))


class Row:
    """A row of Cassandra: write timestamp and value of each column."""

    def __init__(self) -> None:
        self.cells: dict[str, tuple[int, bytes, Any]] = {}

    def write(self, insert: Insert, event: Event, written: int) -> None:
        names = insert.cql.partition("(")[2].partition(")")[0].split(", ")
        computed = [0] * (len(names) - len(insert.parameters(event)))
        for name, value in zip(names, insert.parameters(event, *computed), strict=True):
            if value is not UNSET_VALUE:
                self.cells[name] = max(self.cells.get(name, (-1, b"", None)), (written, _bytes(value), value))

    def __getitem__(self, name: str) -> Any:
        return self.cells[name][2] if name in self.cells else None


def _bytes(value: Any) -> bytes:
    return value.to_bytes(8) if isinstance(value, int) else str(value).encode()


def with_repetitions(draw: Callable[..., Any], events: list[Any]) -> list[Any]:
    return list(draw(st.permutations(events + draw(st.lists(st.sampled_from(events), max_size=4)))))


@given(st.data(), CLOCKS, st.lists(st.integers(0, 3), min_size=1, max_size=5))
def test_correction_wins_in_any_order(data: st.DataObject, clock: WriteClock, seconds: list[int]) -> None:
    """Each late success completes the run once more; it is dated no earlier, but maybe at the same time."""
    total, times = 10, [NOON + timedelta(seconds=sum(seconds[:place])) for place in range(len(seconds))]
    events = [
        completed(total=total, succeeded=5 + n, failed=5 - n, input_bytes=9999 - n, output_bytes=n, time=time)
        for n, time in enumerate(times)
    ]
    row = Row()
    for event in with_repetitions(data.draw, events):
        row.write(tables.INSERT_COMPLETED, event, clock.summary(event))
    last = events[-1]
    assert (row["succeeded"], row["failed"], row["input_bytes"]) == (last.succeeded, last.failed, last.input_bytes)


@given(st.data(), CLOCKS, st.integers(2, 5))
def test_later_run_wins_whatever_the_clocks(data: st.DataObject, clock: WriteClock, runs: int) -> None:
    events: list[RequestCompleted | RequestStopped] = []
    for run in range(runs):
        time = NOON + timedelta(seconds=run) + data.draw(SKEW)
        stopped = completed(run=run, succeeded=data.draw(st.integers(0, 3)), time=time)
        is_completed = data.draw(st.booleans())
        events.append(stopped if is_completed else RequestStopped(**stopped.model_dump(), time=time))
    row = Row()
    for event in with_repetitions(data.draw, events):
        insert = tables.INSERT_COMPLETED if isinstance(event, RequestCompleted) else tables.INSERT_STOPPED
        row.write(insert, event, clock.summary(event))
    assert (row["succeeded"], row["failed"]) == (events[-1].succeeded, events[-1].failed)
    assert row["run"] == max((event.run for event in events if isinstance(event, RequestCompleted)), default=None)


@given(st.data(), CLOCKS)
def test_image_row_is_that_of_one_result(data: st.DataObject, clock: WriteClock) -> None:
    """Also where one run has several results: a success wins, and no two results are mixed."""
    events: list[ImageProcessed | ImageFailed] = []
    for number, (success, run) in enumerate(
        data.draw(st.lists(st.tuples(st.booleans(), st.integers(0, 2)), min_size=1, max_size=6))
    ):
        image = requested(run=run)
        event = processed(image, output_bytes=number) if success else failed(image, f"reason_{number}")
        own = {"width": 100 - number} if success else {"detail": f"detail {9 - number}"}
        events.append(event.model_copy(update={"time": event.time + timedelta(milliseconds=number), **own}))
    row = Row()
    for event in with_repetitions(data.draw, events):
        insert = tables.INSERT_SUCCESS if isinstance(event, ImageProcessed) else tables.INSERT_FAILURE
        row.write(insert, event, clock.image(event))
    successes = [event for event in events if isinstance(event, ImageProcessed)]
    assert (row["output_path"] is not None) is bool(successes)
    if successes:
        assert any((row["output_bytes"], row["width"]) == (one.output_bytes, one.width) for one in successes)
    last = max(events, key=lambda event: (event.run, isinstance(event, ImageProcessed)))
    assert row["run"] == last.run
    failures = [event for event in events if isinstance(event, ImageFailed)]
    if failures:
        assert any((row["reason"], row["detail"]) == (one.reason, one.detail) for one in failures)


@given(CLOCKS, SKEW, st.integers(0, 5))
def test_redelivery_wins_over_the_failure_before_it(clock: WriteClock, skew: timedelta, attempts: int) -> None:
    first = clock.webhook(DeliveryStatus(0, False, attempts, True), NOON)
    again = clock.webhook(DeliveryStatus(0, False, attempts + 1, False), NOON + skew)
    end = clock.webhook(DeliveryStatus(0, False, attempts + 1, True), NOON + 2 * skew)
    assert first < again < end


def test_rebuild_outranks_earlier_writes_not_later_runs() -> None:
    began = NOON + timedelta(days=1)
    for run in (0, 1, 200):
        done = completed(run=run)
        assert WriteClock().summary(done) < WriteClock(began).summary(done)
        rebuilt = WriteClock(began).image(processed(requested(run=run)))
        retried = requested(run=run + 1, time=began - timedelta(seconds=60))
        assert rebuilt < WriteClock().image(failed(retried))


def test_write_by_hand_wins_over_live_writes() -> None:
    result, done = processed(requested(index=5)), completed(succeeded=2**24)
    assert WriteClock().image(result) < microseconds(result.time)
    assert WriteClock().summary(done) < microseconds(done.time)


def test_timestamps_stay_near_the_present() -> None:
    largest = completed(run=1000, succeeded=2**24)
    assert WriteClock().summary(largest) < microseconds(NOON + timedelta(days=7))
    assert WriteClock().at(NOON, 2**16 - 1) + RUN < microseconds(NOON + timedelta(days=410))
