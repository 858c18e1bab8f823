"""`streams/request` is pure: it knows the events and nothing else of the system, and no clock."""

import ast
from pathlib import Path

import pytest

import streams.request

MODULES = sorted(Path(streams.request.__path__[0]).glob("*.py"))
STANDARD = {"collections", "dataclasses", "datetime", "enum", "itertools", "typing"}
ALLOWED = {"streams.events.base", "pydantic", "orjson", *STANDARD}


def imported(tree: ast.Module) -> set[str]:
    names = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return names | {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_module_imports_events_and_nothing_else(path: Path) -> None:
    others = {
        name
        for name in imported(ast.parse(path.read_text()))
        if not name.startswith("streams.request.") and name not in ALLOWED and name.partition(".")[0] not in ALLOWED
    }
    assert others == set()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_module_asks_no_clock(path: Path) -> None:
    names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert not names & {"now", "utcnow", "today"}
    assert "utc_now" not in path.read_text()
