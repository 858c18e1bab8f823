"""The reason codes of failed images are a promise: those that exist are those that the documentation lists."""

import re
from pathlib import Path

from infra.outbound import reasons as outbound
from streams.compress import circuit_breaker, fetch
from streams.compress.codec import outcome
from streams.request import reconcile
from streams.request.failures import FAILURES, HTTP_REASON

ROOT = Path(__file__).parents[3]
DOCUMENT = ROOT / "docs" / "limits-and-reasons.md"
REFUSED = "## CSV errors"


def test_every_reason_is_documented_and_every_documented_reason_exists() -> None:
    of_images, _, _ = DOCUMENT.read_text().partition(REFUSED)
    of_images, _, _ = of_images.partition("## Remedies")
    documented = re.findall(r"^\| `([a-z0-9_<>]+)` \|", of_images, re.MULTILINE)
    assert len(documented) == len(set(documented))
    known = {
        *map(str, outbound.Reason),
        *map(str, outcome.Reason),
        fetch.EMPTY,
        circuit_breaker.HOST_UNAVAILABLE,
        reconcile.REASON,
    }
    assert set(documented) == known | {"fetch_http_<status>"}
    assert {reason for reason in FAILURES if not HTTP_REASON.fullmatch(reason)} == known, "each has its advice"
