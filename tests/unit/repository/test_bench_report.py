"""The arithmetic and the form of the benchmarks' report."""

from pathlib import Path

import pytest

from tests.bench.report import Row, comparison, heading, line, load, save

SPEED = Row("photos", "images/s", [30.0, 40.0, 10.0], limit=[60.0, 50.0, 40.0], against="the raw loop", aim=0.5)
DELAY = Row("status", "ms", [20.0], aim=50, more_is_better=False)


def test_ratio_is_median_of_ratios() -> None:
    assert SPEED.ratio == pytest.approx(0.5)  # of 0.5, 0.8 and 0.25
    assert SPEED.value == 30.0


@pytest.mark.parametrize(
    ("row", "reached"),
    [
        (SPEED, True),
        (Row("slow", "images/s", [1.0], limit=[4.0], aim=0.5), False),
        (DELAY, True),
        (Row("late", "ms", [51.0], aim=50, more_is_better=False), False),
        (Row("memory", "MB", [1.0]), None),
    ],
)
def test_aim_is_compared_with_ratio_or_value(row: Row, reached: bool | None) -> None:
    assert row.reached is reached


def test_figures_align_with_heading() -> None:
    for name in ("ours", "limit", "ratio"):
        end = heading("").index(name) + len(name)
        assert line(SPEED)[end - 1].isdigit()
        assert line(SPEED)[end] == " "


def test_what_is_saved_is_read_again_and_compared(tmp_path: Path) -> None:
    save([SPEED, DELAY], tmp_path / "before.json")
    after = [Row("photos", "images/s", [60.0], limit=[60.0]), Row("status", "ms", [10.0]), Row("new", "ms", [1.0])]

    said = comparison(load(tmp_path / "before.json"), after)

    assert "2.00 times" in said.splitlines()[0]
    assert "0.50 times" in said.splitlines()[1]
    assert "new" not in said
