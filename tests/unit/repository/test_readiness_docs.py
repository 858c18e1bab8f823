"""The table of readiness checks in docs/monitoring.md names each check with the processes that have it."""

import json
import re
import subprocess
import sys

import pytest

from tests.support.markdown import ROOT

ROW = re.compile(r"^\| `([a-z ]+)` \| ([a-z, ]+) \|", re.MULTILINE)
SHOW_CHECKS = """
import json, sys
from importlib import import_module
app = import_module(f"streams.{sys.argv[1]}.app").app
print(json.dumps(sorted(app.worker_monitor.readiness.health().checks)))
"""


WORKERS = ("compress", "progress", "projections")


@pytest.mark.slow
@pytest.mark.parametrize("role", WORKERS)
def test_checks_of_worker_are_documented(role: str) -> None:
    names = {"all": {"api", *WORKERS}, "workers": set(WORKERS)}
    documented = {
        name: set().union(*(names.get(each, {each}) for each in roles.split(", ")))
        for name, roles in ROW.findall((ROOT / "docs/monitoring.md").read_text())
    }
    shown = subprocess.run(
        [sys.executable, "-c", SHOW_CHECKS, role], cwd=ROOT, capture_output=True, text=True, check=True, timeout=240
    )
    checks = set(json.loads(shown.stdout))  # `assignment` and others are added at its start
    assert "kafka writes" in checks
    assert checks <= {name for name, roles in documented.items() if role in roles}
