"""Rows of images are compared with the results that the history writes them from."""

from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.events.images import ImageFailed, ImageProcessed
from streams.projections.history.tables import IMAGE
from streams.projections.history.write_clock import WriteClock
from streams.projections.verify import wrong_columns
from tests.support.examples import failed, processed, requested

Result = ImageProcessed | ImageFailed


def row_of(*events: Result) -> tuple[Any, ...]:
    """The row that the history has: of each column, what the newest event with a value for it says."""
    row: dict[str, Any] = {}
    for event in sorted(events, key=WriteClock().image):
        said = {column.name: getattr(event, column.field, None) for column in IMAGE}
        row |= {column: value for column, value in said.items() if value is not None}
    return tuple(row.get(column.name) for column in IMAGE)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), min_size=1, max_size=6))
def test_row_of_results_in_any_order_is_right(outcomes: list[tuple[bool, int]]) -> None:
    events: list[Result] = [
        (processed if success else failed)(requested(run=run, cells=None if run else ("1",)))
        for success, run in outcomes
    ]
    assert wrong_columns(events, row_of(*events)) == []


@pytest.mark.parametrize("place", range(len(IMAGE)))
def test_another_value_in_any_column_is_found(place: int) -> None:
    event = processed(requested())
    row = list(row_of(event))
    column = IMAGE[place].name
    row[place] = other = ("other",) if column == "cells" else "other"
    wrong = [] if column == "detail" else [f"{column} is {other!r}, which differs from the log"]
    assert wrong_columns([event], tuple(row)) == wrong


def test_a_failed_image_has_no_output() -> None:
    event = failed(requested())
    row = dict(zip((column.name for column in IMAGE), row_of(event), strict=True)) | {"output_path": "images/0.jpg"}
    (wrong,) = wrong_columns([event], tuple(row.values()))
    assert wrong.startswith("output_path is 'images/0.jpg'")


def test_two_results_of_one_moment_may_be_either() -> None:
    events = [failed(requested(), "fetch_timeout"), failed(requested(), "fetch_http_500")]
    for order in permutations(events):
        for event in events:
            assert wrong_columns(order, row_of(event)) == []
    later = failed(requested(run=1), "too_large")
    assert wrong_columns([*events, later], row_of(later)) == []
    assert wrong_columns([*events, later], row_of(events[0])) != []
