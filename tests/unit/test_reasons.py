"""The reason codes of failed images are a promise: those that exist are those that the documentation lists."""

import re
from pathlib import Path

from infra import outbound
from infra.settings import PREFIX, Settings
from streams.compress import fetch, outcome
from streams.progress import healer

DOCUMENT = Path(__file__).parents[2] / "docs" / "limits-and-reasons.md"


def test_every_reason_is_documented_and_every_documented_reason_exists() -> None:
    documented = re.findall(r"^\| `([a-z0-9_<>]+)` \|", DOCUMENT.read_text(), re.MULTILINE)
    assert len(documented) == len(set(documented))
    known = {*map(str, outbound.Reason), *map(str, outcome.Reason), fetch.EMPTY, healer.REASON}
    assert set(documented) == known | {"fetch_http_<status>"}


def test_every_setting_that_the_document_names_exists() -> None:
    named = set(re.findall(rf"{PREFIX}([A-Z_]+)", DOCUMENT.read_text()))
    assert named
    assert named <= {name.upper() for name in Settings.model_fields}
