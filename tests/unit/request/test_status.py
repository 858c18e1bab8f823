"""The status object, as people, programs and webhook receivers get it."""

import json
import re
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.request.status import Status, completed_status
from tests.support.examples import NOON, REQUEST_ID, completed


def status(**fields: object) -> Status:
    return Status.model_validate(
        {
            "request_id": REQUEST_ID,
            "status": "processing",
            "total": 4,
            "succeeded": 0,
            "failed": 0,
            "input_bytes": 0,
            "output_bytes": 0,
            "created_at": NOON,
            "updated_at": NOON,
            **fields,
        }
    )


@pytest.mark.parametrize(
    ("total", "succeeded", "failed", "progress"),
    [
        (1, 0, 0, 0),
        (4, 1, 0, 25),
        (4, 1, 1, 50),
        (3, 1, 0, 33),
        (1_000_000, 999_999, 0, 99),
        (4, 4, 0, 99),
        (4, 0, 4, 99),
    ],
)
def test_last_percent_of_progress_is_output_csv(total: int, succeeded: int, failed: int, progress: int) -> None:
    assert status(total=total, succeeded=succeeded, failed=failed).as_dict()["progress"] == progress


@given(
    st.integers(1, 10**6),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    st.sampled_from(
        [("processing", None), ("completed", NOON), ("cancelled", None), ("expired", NOON), ("expired", None)]
    ),
)
def test_progress_is_100_exactly_after_completion(
    total: int, succeeded: int, failed: int, end: tuple[str, datetime | None]
) -> None:
    word, completed_at = end
    now = status(total=total, succeeded=succeeded, failed=failed, status=word, completed_at=completed_at)
    progress = now.as_dict()["progress"]
    assert isinstance(progress, int)
    assert 0 <= progress <= 100
    assert (progress == 100) == (completed_at is not None)


def test_status_has_promised_members_and_no_internal_ones() -> None:
    shown = status(output_csv_path="csv/secret", owner="somebody").as_dict()
    assert set(shown) == {
        "requestId", "request_id", "status", "progress", "total", "succeeded", "failed", "inputBytes", "outputBytes",
        "createdAt", "updatedAt", "completedAt", "outputCsvUrl", "webhook",
    }  # fmt: skip
    assert shown["requestId"] == shown["request_id"] == REQUEST_ID
    assert json.loads(json.dumps(shown)) == shown


def test_times_are_rfc_3339_in_utc() -> None:
    shown = status(updated_at=NOON + timedelta(milliseconds=250), completed_at=NOON, status="completed").as_dict()
    for name in ("createdAt", "updatedAt", "completedAt"):
        assert re.fullmatch(r"2026-11-21T12:00:00(\.\d+)?Z", str(shown[name])), shown[name]


def test_completion_has_the_status_that_follows() -> None:
    event = completed(owner="shop", webhook_url="https://receiver.example/")
    now = completed_status(event, "pending")
    assert (now.status, now.webhook, now.owner) == ("completed", "pending", "shop")
    assert (now.total, now.succeeded, now.failed) == (event.total, event.succeeded, event.failed)
    assert (now.input_bytes, now.output_bytes) == (event.input_bytes, event.output_bytes)
    assert now.completed_at == now.updated_at == event.time
    assert now.created_at == event.created_at
    assert (now.output_csv_url, now.output_csv_path) == (event.output_csv_url, event.output_csv_path)
