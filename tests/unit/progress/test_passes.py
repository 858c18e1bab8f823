"""Which requests a pass over the progress table takes up."""

from streams.progress.passes import Passes, Rows
from streams.progress.reconciler import REQUESTS_PER_PASS
from streams.progress.store import row_key, split_key, tally_key


def passes(*names: str) -> Passes:
    """A table with these requests; the first character of a name is its partition."""
    table = {row_key(name): name.encode() for name in names} | {tally_key(name, 0): b"tally" for name in names}
    return Passes(table, lambda key: int(split_key(key)[0][0]))


def names(rows: Rows | None) -> set[str]:
    assert rows is not None
    return {name for name, _ in rows}


def test_assigned_partition_is_taken_up_whole_once() -> None:
    due = passes("1a", "1b", "2a")
    assert names(due.next({1})) == {"1a", "1b"}
    due.note_done({1})
    assert due.next({1}) is None
    assert names(due.next({1, 2})) == {"1a", "1b", "2a"}


def test_interrupted_pass_is_repeated() -> None:
    due = passes("1a")
    due.next({1})
    assert names(due.next({1})) == {"1a"}


def test_partition_assigned_again_is_taken_up_again() -> None:
    due = passes("1a")
    due.next({1})
    due.note_done({1})
    assert due.next(set()) is None
    assert names(due.next({1})) == {"1a"}


def test_retried_request_needs_no_whole_pass() -> None:
    due = passes("1a", "1b", "2a")
    due.note_done({1})
    for name in ("1b", "2a", "1gone"):
        due.note_retry(name)
    assert names(due.next({1})) == {"1b"}
    assert due.next({1}) is None


def test_many_retries_are_spread_over_passes() -> None:
    every = [f"1{number}" for number in range(REQUESTS_PER_PASS + 1)]
    due = passes(*every)
    due.note_done({1})
    for name in every:
        due.note_retry(name)
    first, second = names(due.next({1})), names(due.next({1}))
    assert (len(first), first | second) == (REQUESTS_PER_PASS, set(every))
