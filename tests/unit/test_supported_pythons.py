"""The Makefile installs with the interpreter that it is given."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATCH = "{}.{}.{}".format(*sys.version_info)


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``make`` as somebody at a terminal runs it, not as a part of the ``make`` that may run this test."""
    ours = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "PYTHON"}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    if shutil.which("make") is None:
        pytest.skip("there is no make on the PATH")
    shutil.copy(ROOT / "Makefile", tmp_path)
    return tmp_path


def test_naming_another_python_makes_the_environment_again(checkout: Path) -> None:
    old = checkout / ".venv" / "lib" / "package.py"
    old.parent.mkdir(parents=True)
    old.touch()
    (checkout / ".venv" / ".python-3.10.0").touch()
    stamp = f".venv/.python-{PATCH}"
    first = make(checkout, stamp, f"PYTHON={sys.executable}")
    assert f"with Python {PATCH}" in first.stdout, first.stderr
    assert not old.exists()
    assert "up to date" in make(checkout, stamp).stdout  # without PYTHON, .venv keeps its own


def test_make_names_a_python_that_it_refuses(checkout: Path) -> None:
    other = shutil.which("true")
    refused = make(checkout, ".venv/.python-", f"PYTHON={other}")
    assert refused.returncode == 2
    assert f"needs Python 3.11 or newer; found: {other}" in refused.stderr
