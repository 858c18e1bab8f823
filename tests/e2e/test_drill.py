"""The drill, shorter: `make drill` kills more."""

from pathlib import Path

from tests.drill.drill import run_drill


def test_a_request_is_complete_and_exact_although_processes_are_killed_under_it(tmp_path: Path) -> None:
    outcome = run_drill(4, images=600, kills=4, data_dir=tmp_path)
    assert outcome.faults == []
    assert outcome.webhooks == 1
