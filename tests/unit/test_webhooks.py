"""Webhook messages, checked by the reference implementation of Standard Webhooks."""

import base64
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from streams.projections.webhooks import message, sign, webhook_id
from tests.examples import completed

KEY = bytes(range(24))
SECRET = "whsec_" + base64.b64encode(KEY).decode()
EVENT = completed(webhook_url="https://receiver.example/hook")


def headers(body: bytes, key: bytes = KEY, seconds_ago: int = 0) -> dict[str, str]:
    timestamp = int(time.time()) - seconds_ago
    return {
        "webhook-id": webhook_id(EVENT),
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign(key, webhook_id(EVENT), timestamp, body),
    }


@given(st.binary(min_size=1, max_size=64), st.dictionaries(st.text(), st.text()))
def test_the_reference_verifier_accepts_what_we_sign(key: bytes, content: dict[str, str]) -> None:
    body = json.dumps(content).encode()
    verifier = Webhook("whsec_" + base64.b64encode(key).decode())
    assert verifier.verify(body, headers(body, key)) == content


def test_our_signature_is_the_one_that_the_reference_makes() -> None:
    # The example of the reference implementation's own tests.
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signature = sign(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("changed", ["body", "webhook-id", "webhook-timestamp", "webhook-signature", "key", "age"])
def test_the_reference_verifier_refuses_what_was_tampered_with(changed: str) -> None:
    body = message(EVENT)
    sent = headers(body, key=KEY[::-1] if changed == "key" else KEY, seconds_ago=3600 if changed == "age" else 0)
    match changed:
        case "body":
            body = body.replace(b'"completed"', b'"processing"')
        case "webhook-id":
            sent["webhook-id"] = webhook_id(EVENT)[:-1] + "x"
        case "webhook-timestamp":
            sent["webhook-timestamp"] = str(int(sent["webhook-timestamp"]) - 1)
        case "webhook-signature":
            sent["webhook-signature"] = "v1," + base64.b64encode(bytes(32)).decode()
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body, sent)


def test_the_body_says_what_happened_when_and_the_status() -> None:
    body = json.loads(message(EVENT))
    assert set(body) == {"type", "timestamp", "data"}
    assert body["type"] == "request.completed"
    assert body["timestamp"] == "2026-11-21T12:01:00Z"
    assert body["data"]["requestId"] == body["data"]["request_id"] == EVENT.request_id
    assert (body["data"]["status"], body["data"]["progress"]) == ("completed", 100)
    assert body["data"]["outputCsvUrl"] == EVENT.output_csv_url


def test_the_same_completion_makes_the_same_message() -> None:
    again = completed(webhook_url="https://receiver.example/hook")
    assert (message(again), webhook_id(again)) == (message(EVENT), webhook_id(EVENT))


def test_each_completion_has_a_message_id_of_its_own() -> None:
    ids = {webhook_id(completed(request_id, run=run)) for request_id in ("one", "two") for run in (0, 1)}
    assert len(ids) == 4
