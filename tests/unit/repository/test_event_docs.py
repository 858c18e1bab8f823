"""docs/events.md says of every event what the code and /asyncapi.json say."""

import ast
import re
from dataclasses import dataclass, field
from functools import cache

import orjson
import pytest
from jsonschema import Draft202012Validator

from api.contract import asyncapi
from streams.events.base import Event
from streams.events.registry import EVENT_CLASSES, decode
from streams.log.topics import Topics
from tests.support.markdown import ROOT

DOCUMENT = ROOT / "docs" / "events.md"
ASYNCAPI = asyncapi.document(Topics(), version="1")
ALL = {cls.__name__: cls for cls in EVENT_CLASSES}
OF_EVERY_EVENT = {str(field.alias) for field in Event.model_fields.values() if not field.exclude}


@dataclass
class Section:
    """What stands under a heading: the rows of its table, the sections that it refers to, its example."""

    topic: str
    rows: dict[str, str] = field(default_factory=dict)
    shared: list[str] = field(default_factory=list)
    example: bytes = b""


@cache
def sections() -> dict[str, Section]:
    found: dict[str, Section] = {}
    for chapter in re.split(r"^## ", DOCUMENT.read_text(), flags=re.MULTILINE)[1:]:
        topic, *parts = re.split(r"^### ", chapter, flags=re.MULTILINE)
        for part in parts:
            title, _, text = part.partition("\n")
            found[title] = Section(
                topic.partition("\n")[0],
                dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text, re.MULTILINE)),
                [link.replace("-", " ").capitalize() for link in re.findall(r"\(#([a-z-]+)\)", text)],
                "".join(re.findall(r"```json\n(.*?)```", text, re.DOTALL)).encode(),
            )
    return found


def test_every_event_is_described_and_nothing_else() -> None:
    shared = {"Fields of an image", "Sums of a request", "Fields about a webhook"}
    assert set(sections()) == set(ALL) | shared


@pytest.mark.parametrize("name", ALL)
def test_events_page_has_topic_and_fields_of_events(name: str) -> None:
    section = sections()[name]
    rows = section.rows | {row: kind for other in section.shared for row, kind in sections()[other].rows.items()}
    schema = ASYNCAPI["components"]["schemas"][name]
    assert section.topic == getattr(Topics(), ALL[name].topic)
    assert set(rows) | OF_EVERY_EVENT == set(schema["properties"])
    for row, kind in rows.items():
        described = schema["properties"][row]
        types = {one.get("type") for one in described.get("anyOf", [described])}
        expected = {"time": "string", "list of strings": "array"}
        assert expected.get(kind.split(",")[0], kind.split(",")[0]) in types, row
        if kind.endswith("optional"):
            assert row not in schema.get("required", ())
        if kind.startswith("time"):
            assert any(one.get("format") == "date-time" for one in described.get("anyOf", [described])), row


@pytest.mark.parametrize("name", ALL)
def test_examples_are_current_and_match_published_schema(name: str) -> None:
    example = sections()[name].example
    event = decode(example)
    assert type(event) is ALL[name]
    assert orjson.loads(event.encode()) == orjson.loads(example)
    message = ASYNCAPI["components"]["messages"][name]["payload"]
    Draft202012Validator({**message, "components": ASYNCAPI["components"]}).validate(orjson.loads(example))


def test_what_every_event_has_is_described() -> None:
    general = DOCUMENT.read_text().partition("## Shared fields")[0]
    described = re.findall(r"^\| `(\w+)` \|", general, re.MULTILINE)
    assert described == list(Event.envelope_schema({})["properties"])
    assert [name for name in OF_EVERY_EVENT if f"`{name}`" not in general] == []


# --- docs/architecture.md: event, topic, who writes, who reacts

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
FLOW = re.findall(
    r"^\| (`[A-Z]\w+`[^|]*) \| `([a-z-]+)` \| ([^|]+) \| ([^|]+) \|$",
    (ROOT / "docs" / "architecture.md").read_text(),
    re.MULTILINE,
)


def test_flow_table_has_every_event_once_with_its_topic() -> None:
    names = [(name, topic) for events, topic, *_ in FLOW for name in re.findall(r"`(\w+)`", events)]
    assert sorted(names) == sorted((name, cls.topic.replace("_", "-")) for name, cls in ALL.items())


@pytest.mark.parametrize(
    "name", sorted({found for row in FLOW for found in re.findall(r"`(\w+(?:\.\w+)+)`", str(row))})
)
def test_flow_table_names_functions_of_the_code(name: str) -> None:
    parts = (name if name.startswith("api.") else f"streams.{name}").split(".")
    length = next(n for n in range(len(parts), 0, -1) if (ROOT / f"{'/'.join(parts[:n])}.py").is_file())
    found = ast.parse((ROOT / f"{'/'.join(parts[:length])}.py").read_text()).body
    for part in parts[length:]:
        defined = {node.name: node.body for node in found if isinstance(node, DEFINITIONS)}
        assert part in defined
        found = defined[part]
