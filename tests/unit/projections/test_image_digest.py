"""What is remembered of an image to compare its row: the same as the rows that the history writes."""

from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.events.images import ImageFailed, ImageProcessed
from streams.projections.history.tables import IMAGE
from streams.projections.history.write_clock import WriteClock
from streams.projections.image_digest import ImageDigest
from tests.support.examples import failed, processed, requested

Result = ImageProcessed | ImageFailed


def row_of(*events: Result) -> tuple[Any, ...]:
    """The row that the history has: of each column, what the newest event with a value for it says."""
    row: dict[str, Any] = {}
    for event in sorted(events, key=WriteClock().image):
        said = {column.name: getattr(event, column.field, None) for column in IMAGE}
        row |= {column: value for column, value in said.items() if value is not None}
    return tuple(row.get(column.name) for column in IMAGE)


def digest_of(*events: Result) -> ImageDigest:
    digest = ImageDigest()
    for event in events:
        digest = digest.after(event)
    return digest


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), min_size=1, max_size=6))
def test_digest_accepts_row_of_results_in_any_order(outcomes: list[tuple[bool, int]]) -> None:
    events: list[Result] = [
        (processed if success else failed)(requested(run=run, cells=None if run else ("1",)))
        for success, run in outcomes
    ]
    assert digest_of(*events).wrong_columns(row_of(*events)) == []


@pytest.mark.parametrize("place", range(len(IMAGE)))
def test_another_value_in_any_column_is_found(place: int) -> None:
    event = processed(requested())
    row = list(row_of(event))
    column = IMAGE[place].name
    row[place] = other = ("other",) if column == "cells" else "other"
    wrong = [] if column == "detail" else [f"{column} is {other!r}, which differs from the log"]
    assert digest_of(event).wrong_columns(tuple(row)) == wrong


def test_a_failed_image_has_no_output() -> None:
    event = failed(requested())
    row = dict(zip((column.name for column in IMAGE), row_of(event), strict=True)) | {"output_path": "images/0.jpg"}
    (wrong,) = digest_of(event).wrong_columns(tuple(row.values()))
    assert wrong.startswith("output_path is 'images/0.jpg'")


def test_two_results_of_one_moment_may_be_either() -> None:
    events = [failed(requested(), "fetch_timeout"), failed(requested(), "fetch_http_500")]
    for order in permutations(events):
        for event in events:
            assert digest_of(*order).wrong_columns(row_of(event)) == []
    later = failed(requested(run=1), "too_large")
    assert digest_of(*events, later).wrong_columns(row_of(later)) == []
    assert digest_of(*events, later).wrong_columns(row_of(events[0])) != []
