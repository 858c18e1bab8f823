"""The drill, shorter: `make drill` makes more and longer faults."""

from pathlib import Path

from tests.drill.drill import run_drill
from tests.drill.faults import Kind


def test_requests_stay_exact_under_faults(tmp_path: Path) -> None:
    kinds = (Kind.KILL, Kind.EXPEL, Kind.CUT_KAFKA, Kind.HALF_KAFKA, Kind.CLOCK)
    outcome = run_drill(
        4, images=300, more_images=20, faults=5, seconds=(5, 8), data_dir=tmp_path / "drill", kinds=kinds
    )
    assert outcome.wrong == []
    assert len(outcome.made) == 5
