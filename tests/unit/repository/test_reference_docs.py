"""What the reference pages list is what there is: routes, errors, settings, files."""

import json
import re
from pathlib import Path

import pytest

from api.app import route_table
from infra.settings import PREFIX, Settings
from tests.support import docs_tables, markdown
from tests.support.markdown import ROOT

API = (ROOT / "docs" / "api.md").read_text()


def test_every_route_stands_in_the_table_and_nothing_else() -> None:
    rows = re.findall(r"^\| `(GET|POST|DELETE) ([^|]*)\|", API, re.MULTILINE)
    listed = {(method, path) for method, paths in rows for path in re.findall(r"(/[^`,\s]*)", paths)}
    routed = {
        (route.method, re.sub(r"\{request_id\}", "{id}", re.sub(r"\{(\w+):[^}]+\}", r"{\1}", path)))
        for route in route_table()
        for path in (route.path, *route.aliases)
    }
    assert listed == routed


@pytest.mark.parametrize("name", docs_tables.TABLES)
def test_tables_are_those_of_the_code(name: str) -> None:
    assert docs_tables.path_of(name).read_text() == docs_tables.up_to_date(name), "run `make docs`"


def test_every_setting_that_a_document_names_exists() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for path in markdown.documents():
        assert set(re.findall(rf"{PREFIX}[A-Z_]*[A-Z]", path.read_text())) <= known, path


def test_every_file_that_a_document_names_exists() -> None:
    """Paths in code, such as `streams/events/base.py`; where they are examples to be made, others name them."""
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
