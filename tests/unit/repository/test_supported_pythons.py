"""The supported versions of Python are the tested ones, in pyproject, documents, Dockerfile, Makefile and CI."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TESTED = [found[1] for text in PROJECT["classifiers"] if (found := re.search(r":: (3\.\d+)$", text))]
RUNNING = "{}.{}".format(*sys.version_info)
PATCH = "{}.{}.{}".format(*sys.version_info)
INTERPRETER = Path(sys.executable).resolve()


def find_pythons(home: Path, *versions: str) -> list[str]:
    """What the search finds where the PATH has only `home`, with the programs that it needs itself."""
    for program in ("bash", "sort"):
        (home / program).symlink_to(str(shutil.which(program)))
    environment = {"PATH": str(home), "HOME": str(home)}
    run = subprocess.run(
        [ROOT / ".ci" / "pythons", *versions], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    return run.stdout.split()


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


def test_documents_name_the_tested_pythons() -> None:
    assert PROJECT["requires-python"] == f">={TESTED[0]}"
    span = f"{TESTED[0]} to {TESTED[-1]}"
    for document in ("README.md", "CONTRIBUTING.md"):
        assert span in (ROOT / document).read_text(), document


def test_container_runs_a_tested_python() -> None:
    dockerfile = (ROOT / "infra" / "docker" / "Dockerfile").read_text()
    versions = re.findall(r"^FROM python:(3\.\d+)\.", dockerfile, re.MULTILINE)
    assert len(versions) == dockerfile.count("FROM ")
    assert set(versions) <= set(TESTED)


@pytest.mark.parametrize(
    "place",
    ["python{0}", ".pyenv/versions/{1}/bin/python{0}", ".local/share/uv/python/cpython-{1}-linux/bin/python{0}"],
)
def test_search_finds_python_on_path_and_in_folders(place: str, tmp_path: Path) -> None:
    python = tmp_path / place.format(RUNNING, PATCH)
    python.parent.mkdir(parents=True, exist_ok=True)
    python.symlink_to(INTERPRETER)
    assert find_pythons(tmp_path, "3.99", RUNNING) == [str(python)]


def test_search_leaves_out_other_versions(tmp_path: Path) -> None:
    (tmp_path / "python3.99").symlink_to(INTERPRETER)
    assert find_pythons(tmp_path, "3.99") == []


@pytest.mark.slow
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
