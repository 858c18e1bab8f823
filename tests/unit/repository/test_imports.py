"""The arrows between the rooms of the house: imports go one way, and `streams/request` is pure."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.markdown import ROOT

APPS = {"streams.compress", "streams.progress", "streams.projections", "streams.webhooks"}
# Room → rooms of this repository that its modules may import, beside their own.
ARROWS: dict[str, set[str]] = {
    "streams.events": set(),
    "streams.request": {"streams.events"},
    "streams.log": {"streams.events", "streams.request", "infra"},
    "streams.compress": {"streams.events", "streams.request", "streams.log", "infra"},
    "streams.progress": {"streams.events", "streams.request", "streams.log", "infra"},
    "streams.webhooks": {"streams.events", "streams.request", "streams.log", "infra"},
    "streams.projections": {"streams.events", "streams.request", "streams.log", "streams.webhooks", "infra"},
    "api": {"streams", "infra"},
    "infra.cli": {"api", "streams", "infra"},
    "infra": {"infra"},
}
PURE = {"collections", "dataclasses", "datetime", "enum", "itertools", "typing", "pydantic", "orjson", "re"}
REQUEST = sorted((ROOT / "streams" / "request").glob("*.py"))


def modules_of(room: str) -> list[Path]:
    paths = sorted((ROOT / room.replace(".", "/")).rglob("*.py"))
    return [path for path in paths if room != "infra" or "cli" not in path.relative_to(ROOT).parts]


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def is_in(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


@pytest.mark.parametrize("room", ARROWS)
def test_imports_follow_the_arrows(room: str) -> None:
    allowed = ARROWS[room] | {room}
    against = [
        f"{path.relative_to(ROOT)}: {module}"
        for path in modules_of(room)
        for module in imported(path)
        if (
            module.partition(".")[0] in ("api", "streams", "infra") and not any(is_in(module, each) for each in allowed)
        )
        or (room == "infra" and is_in(module, "infra.cli"))
    ]
    assert against == []


@pytest.mark.parametrize("path", REQUEST, ids=lambda path: path.stem)
def test_request_domain_is_pure(path: Path) -> None:
    others = {name for name in imported(path) if not is_in(name, "streams") and name.partition(".")[0] not in PURE}
    assert others == set()
    assert "utc_now" not in path.read_text()
