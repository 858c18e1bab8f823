"""What the reference pages list is what there is: routes, errors, settings, files."""

import ast
import json
import os
import re
from http import HTTPStatus
from pathlib import Path

from click.testing import CliRunner

from api.app import route_table
from infra.cli.main import main
from infra.settings import PREFIX, Settings
from tests.support import markdown
from tests.support.markdown import ROOT
from tests.support.shell import reader_folder, run_blocks

API = (ROOT / "docs" / "api.md").read_text()
SETTINGS = (ROOT / "docs" / "settings.md").read_text()


def problems() -> set[tuple[str, int]]:
    """The code and status of every ``Problem`` that the API makes, where both are written out."""
    found = set()
    for path in (ROOT / "api").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(
                    func=ast.Name(id="Problem"),
                    args=[ast.Attribute(value=ast.Name(id="HTTPStatus"), attr=status), ast.Constant(value=code), *_],
                ):
                    found.add((str(code), HTTPStatus[status].value))
    return found


def test_every_route_stands_in_the_table_and_nothing_else() -> None:
    rows = re.findall(r"^\| `(GET|POST) ([^|]*)\|", API, re.MULTILINE)
    listed = {(method, path) for method, paths in rows for path in re.findall(r"(/[^`,\s]*)", paths)}
    routed = {
        (route.method, re.sub(r"\{request_id\}", "{id}", re.sub(r"\{(\w+):[^}]+\}", r"{\1}", path)))
        for route in route_table()
        for path in (route.path, *route.aliases)
    }
    assert listed == routed


def test_every_error_stands_in_the_table_with_its_status() -> None:
    listed = {(code, int(status)) for code, status in re.findall(r"^\| `([a-z-]+)` \| (\d+) \|", API, re.MULTILINE)}
    assert len(problems()) > 25
    assert listed == problems()


def test_the_table_of_settings_is_the_one_that_the_program_prints() -> None:
    printed = CliRunner().invoke(main, ["settings", "--markdown"])
    assert printed.exit_code == 0
    assert SETTINGS.endswith(f"\n\n{printed.output}"), (
        "sed -i '/^| variable/,$d' docs/settings.md && .venv/bin/shrinkstream settings --markdown >> docs/settings.md"
    )
    assert printed.output.count("\n") == len(Settings.model_fields) + 2


def test_every_setting_that_a_document_names_exists() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for path in markdown.documents():
        assert set(re.findall(rf"{PREFIX}[A-Z_]*[A-Z]", path.read_text())) <= known, path


def test_every_file_that_a_document_names_exists() -> None:
    """Paths in code, such as `streams/events.py`; where they are examples of what is to be made, others name them."""
    named = re.compile(r"`((?:api|docs|infra|streams|tests)/[\w./-]*)`")
    made = {Path(block.file).parts[:2] for block in markdown.read("docs/adding-a-projection.md").blocks if block.file}
    for path in markdown.documents():
        for name in named.findall(path.read_text()):
            assert (ROOT / name).exists() or Path(name).parts[:2] in made, f"{path} names {name}"


def test_every_example_in_json_is_json() -> None:
    for path in markdown.documents():
        for block in markdown.read(path).of_language("json"):
            if "…" not in block.text:
                json.loads(block.text)


def test_the_commands_that_print_the_table_anew_leave_it_as_it_is(tmp_path: Path) -> None:
    """They stand in CONTRIBUTING.md, for after a change of the settings."""
    (block,) = [block for block in markdown.read("CONTRIBUTING.md").of_language("sh") if "settings" in block.text]
    folder = reader_folder(tmp_path / "checkout", tmp_path)
    (folder / "docs").mkdir()
    (folder / "docs" / "settings.md").write_text(SETTINGS)
    run_blocks([block.text], folder=folder, environment=os.environ)
    assert (folder / "docs" / "settings.md").read_text() == SETTINGS


def test_what_contributors_are_told_to_test_exists() -> None:
    named = re.findall(r"pytest [^\n]*?(tests/\S+)", (ROOT / "CONTRIBUTING.md").read_text())
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
