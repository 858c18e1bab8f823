"""The documents say what the code does: they are made from it, and these tests find what could be left out."""

import re
from typing import Any, cast

import orjson
import pytest
from jsonschema import Draft202012Validator

from api.app import create_app
from api.context import Context
from api.contract import asyncapi, docs
from infra.settings import Settings
from streams.events.base import Event
from streams.log.producer import EventLog, record_of
from streams.log.topics import Topics
from streams.request.status import Status
from tests.support.event_examples import EXAMPLES, name_of
from tests.support.examples import NOON

ASYNCAPI = asyncapi.document(Topics(), version="1")


def test_registered_and_documented_routes_are_equal() -> None:
    nothing = cast("Any", None)  # the routes are only looked at, and use no connection
    app = create_app(Context(Settings(), *[nothing] * 8))
    registered = {
        (re.sub(r"\{(\w+)(:[^}]*)?\}", r"{\1}", route.resource.canonical), route.method)
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD"  # answered wherever GET is
    }
    documented = {
        (path, method.upper())
        for path, operations in orjson.loads(app[docs.OPENAPI])["paths"].items()
        for method in operations
    }
    assert documented == registered


@pytest.mark.parametrize("event", EXAMPLES, ids=name_of)
def test_encoded_event_matches_asyncapi_document(event: Event) -> None:
    name = type(event).__name__
    schema = {**ASYNCAPI["components"]["messages"][name]["payload"], "components": ASYNCAPI["components"]}
    Draft202012Validator.check_schema(schema)
    wire = orjson.loads(event.encode())
    Draft202012Validator(schema).validate(wire)
    assert set(wire) == set(schema["properties"])
    assert set(wire["data"]) <= set(ASYNCAPI["components"]["schemas"][name]["properties"])


def test_a_record_has_the_headers_that_the_document_says() -> None:
    _, headers = record_of(EXAMPLES[0], EventLog(Settings()).headers)
    documented = ASYNCAPI["components"]["messages"]["RequestCreated"]["headers"]["properties"]
    assert {name for name, _ in headers} == set(documented)


def test_status_has_both_id_spellings_and_no_internals() -> None:
    status = Status(
        request_id="r",
        status="processing",
        total=3,
        succeeded=1,
        failed=0,
        input_bytes=10,
        output_bytes=5,
        created_at=NOON,
        updated_at=NOON,
        owner="shop",
        output_csv_path="csv/r/0.csv",
    ).as_dict()
    assert (status["requestId"], status["request_id"], status["progress"]) == ("r", "r", 33)
    assert not {"owner", "outputCsvPath"} & set(status)
