"""Webhook messages, their signatures, when they are tried, and what their events add up to."""

import base64
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from api.requests.webhook import _shown
from streams.events.base import Event
from streams.events.requests import RequestCompleted
from streams.events.webhooks import WebhookAttempted, WebhookDelivered, WebhookFailed, WebhookRedeliveryRequested
from streams.log.reader import CLOCK_SKEW
from streams.request.outcome import outcome_of
from streams.request.webhook import delivery_status
from streams.webhooks.claim import MARGIN, Claim, blocked_until
from streams.webhooks.delivery import Attempt, Delivery, Origin
from streams.webhooks.message import completion_id, message
from streams.webhooks.schedule import Outcome, Schedule
from streams.webhooks.signature import VerificationError, owner_keys, sign, signed_headers, verify
from tests.support import npm_oracle
from tests.support.examples import NOON, completed

KEY = bytes(range(24))
OTHER_KEY = bytes(range(24, 48))
EVENT = completed(webhook_url="https://receiver.example/hook")
ID = completion_id(EVENT.request_id, 0)


def secret(key: bytes) -> str:
    return "whsec_" + base64.b64encode(key).decode()


def headers(body: bytes, *keys: bytes, seconds_ago: int = 0) -> dict[str, str]:
    return signed_headers(keys or (KEY,), ID, datetime.now(UTC) - timedelta(seconds=seconds_ago), body)


# --- signatures


@given(st.binary(min_size=1, max_size=64), st.dictionaries(st.text(), st.text()))
def test_reference_verifiers_and_ours_accept_our_signature(key: bytes, content: dict[str, str]) -> None:
    body = json.dumps(content).encode()
    assert Webhook(secret(key)).verify(body, headers(body, key)) == content
    verify([key], headers(body, key), body, datetime.now(UTC))


def test_our_signature_is_the_one_that_the_reference_makes() -> None:
    # The example of the reference implementation's own tests.
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signature = sign(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


TAMPERED = ["body", "webhook-id", "webhook-timestamp", "webhook-signature", "key", "too old", "too new"]


@pytest.mark.parametrize("changed", TAMPERED)
def test_reference_verifiers_and_ours_reject_tampered_messages(changed: str) -> None:
    body = message(EVENT)
    age = {"too old": 3600, "too new": -3600}.get(changed, 0)
    sent = headers(body, OTHER_KEY if changed == "key" else KEY, seconds_ago=age)
    match changed:
        case "body":
            body = body.replace(b'"completed"', b'"processing"')
        case "webhook-id":
            sent["webhook-id"] = ID[:-1] + "x"
        case "webhook-timestamp":
            sent["webhook-timestamp"] = str(int(sent["webhook-timestamp"]) - 1)
        case "webhook-signature":
            sent["webhook-signature"] = "v1," + base64.b64encode(bytes(32)).decode()
    with pytest.raises(WebhookVerificationError):
        Webhook(secret(KEY)).verify(body, sent)
    assert not npm_oracle.accepts(secret(KEY), sent, body)
    with pytest.raises(VerificationError):
        verify([KEY], sent, body, datetime.now(UTC))


@given(
    st.fixed_dictionaries(
        {}, optional={name: st.text() for name in ("webhook-id", "webhook-timestamp", "webhook-signature")}
    )
)
def test_no_headers_make_verifying_crash_or_pass(sent: dict[str, str]) -> None:
    with pytest.raises(VerificationError):
        verify([KEY], sent, b"{}", datetime.now(UTC))


@pytest.mark.parametrize("known", [KEY, OTHER_KEY])
def test_while_a_secret_is_changed_either_one_verifies(known: bytes) -> None:
    body = message(EVENT)
    sent = headers(body, OTHER_KEY, KEY)
    assert len(sent["webhook-signature"].split(" ")) == 2
    Webhook(secret(known)).verify(body, sent)
    assert npm_oracle.accepts(secret(known), sent, body)
    verify([known], sent, body, datetime.now(UTC))


def test_receiver_of_one_owner_refuses_messages_to_another() -> None:
    forged = signed_headers(owner_keys([KEY], "alice"), ID, datetime.now(UTC), b"{}")
    verify(owner_keys([KEY], "alice"), forged, b"{}", datetime.now(UTC))
    for keys in (owner_keys([KEY], "bob"), [KEY]):
        with pytest.raises(VerificationError):
            verify(keys, forged, b"{}", datetime.now(UTC))


def test_owner_keys_are_stable_and_keep_their_order() -> None:
    assert owner_keys([KEY, OTHER_KEY], "alice") == [*owner_keys([KEY], "alice"), *owner_keys([OTHER_KEY], "alice")]
    assert owner_keys([KEY], "alice")[0].hex() == "c0d24db74f40487daf3a08350c452bd1e40350fea74fd85c4e7f0bfad806ec4b"
    assert owner_keys([KEY, OTHER_KEY], "") == [KEY, OTHER_KEY]


def test_default_receiver_is_shown_as_its_host() -> None:
    url = "https://hooks.example:8443/services/T0KEN?token=s3cret"
    delivery = Delivery(ID, Origin(EVENT.request_id, "request.completed", 0, url, "{}", NOON))
    assert _shown(delivery, default_url=url).url == "https://hooks.example:8443"
    assert _shown(delivery, default_url="https://other.example/").url == url
    assert _shown(delivery, default_url=None).url == url


def test_claim_outlasts_the_post_on_clocks_a_minute_apart() -> None:
    assert MARGIN >= CLOCK_SKEW


def test_without_a_secret_there_is_no_signature() -> None:
    assert signed_headers((), ID, NOON, b"{}").keys() == {"webhook-id", "webhook-timestamp"}


# --- messages


def test_the_body_says_what_happened_when_and_the_status() -> None:
    body = json.loads(message(EVENT))
    assert set(body) == {"type", "timestamp", "data"}
    assert body["type"] == "request.completed"
    assert body["timestamp"] == "2026-11-21T12:01:00Z"
    assert body["data"]["requestId"] == body["data"]["request_id"] == EVENT.request_id
    assert (body["data"]["status"], body["data"]["progress"]) == ("completed", 100)
    assert body["data"]["outputCsvUrl"] == EVENT.output_csv_url


def test_the_same_completion_makes_the_same_message() -> None:
    assert message(completed(webhook_url="https://receiver.example/hook")) == message(EVENT)


def test_each_completion_has_its_own_message_id() -> None:
    assert len({completion_id(request_id, run) for request_id in ("one", "two") for run in (0, 1)}) == 4


def test_message_ids_never_change() -> None:
    # A receiver drops repeats by it, over all versions of this program.
    assert completion_id("5f0c7a52-7c5e-4d0e-9b5e-2f6a1c3d4e5f", 0) == "msg_3fe354ef94325842b8f465306a13fad2"


# --- schedule


PAUSES = (5.0, 300.0, 1800.0)
FAILURE = Outcome(500, "http_500", 20)


@given(st.integers(1, 3), st.floats(0, 1))
def test_backoff_is_schedule_plus_jitter(tries: int, jitter: float) -> None:
    at = Schedule(PAUSES, lambda: jitter).next_attempt_at(tries, FAILURE, NOON)
    assert at is not None
    pause = (at - NOON).total_seconds()
    assert PAUSES[tries - 1] - 0.001 <= pause <= 1.2 * PAUSES[tries - 1] + 0.001
    assert at.microsecond % 1000 == 0, "events and Cassandra have milliseconds"


def test_after_the_last_pause_there_is_no_further_attempt() -> None:
    assert Schedule(PAUSES).next_attempt_at(4, FAILURE, NOON) is None
    assert Schedule(()).next_attempt_at(1, FAILURE, NOON) is None


@pytest.mark.parametrize(
    "outcome", [Outcome(410, "http_410", 20), Outcome(None, "fetch_forbidden_address", 0, hopeless=True)]
)
def test_what_can_not_succeed_is_not_tried_again(outcome: Outcome) -> None:
    assert Schedule(PAUSES).next_attempt_at(1, outcome, NOON) is None


@pytest.mark.parametrize(("asked", "waited"), [(2.0, 5.0), (60.0, 60.0), (86_400.0, 86_400.0)])
def test_retry_after_makes_a_pause_longer_and_never_shorter(asked: float, waited: float) -> None:
    schedule = Schedule(PAUSES, lambda: 0.0)
    outcome = Outcome(503, "http_503", 20, retry_after=asked)
    assert schedule.next_attempt_at(1, outcome, NOON) == NOON + timedelta(seconds=waited)


# --- deliveries


ORIGIN = Origin("r", "request.completed", 0, "https://receiver.example/hook", "{}", NOON)


def attempt(number: int, reason: str | None = "http_500", *, last: bool = False) -> Attempt:
    at = NOON + timedelta(minutes=number)
    again = at + timedelta(minutes=10) if reason and not last else None
    return Attempt(number, at, 500 if reason else 200, 20, reason, again, last)


def test_message_is_due_at_creation_then_by_schedule() -> None:
    assert (Delivery(ID, ORIGIN).due, Delivery(ID, ORIGIN).state) == (NOON, "pending")
    once = Delivery(ID, ORIGIN, (attempt(1),))
    assert (once.due, once.state) == (attempt(1).next_attempt_at, "pending")


def test_confirmed_given_up_and_unknown_messages_are_not_due() -> None:
    confirmed = Delivery(ID, ORIGIN, (attempt(1), attempt(2, None)))
    assert (confirmed.due, confirmed.state) == (None, "delivered")
    given_up = Delivery(ID, ORIGIN, (attempt(1), attempt(2, last=True)))
    assert (given_up.due, given_up.state) == (None, "failed")
    of_before = Delivery(ID, ORIGIN, (attempt(1),), given_up=frozenset({1}))
    assert (of_before.due, of_before.state) == (None, "failed")
    assert Delivery(ID, None, (attempt(1),)).due is None


def test_attempt_without_next_time_is_followed_at_once() -> None:
    old = Attempt(1, NOON, 500, 20, "http_500", None, last=False)
    assert Delivery(ID, ORIGIN, (old,)).due == NOON


@pytest.mark.parametrize("settled", [(attempt(1, None),), (attempt(1, last=True),), (attempt(1),)])
def test_redelivery_is_due_at_once_with_fresh_schedule(
    settled: tuple[Attempt, ...],
) -> None:
    asked = NOON + timedelta(minutes=2)
    delivery = Delivery(ID, ORIGIN, settled, {1: asked})
    assert (delivery.due, delivery.after_attempt) == (asked, 1)
    made = Delivery(ID, ORIGIN, (*settled, attempt(2)), {1: asked})
    assert (made.due, made.after_attempt) == (attempt(2).next_attempt_at, 1)


def test_delivered_message_stays_delivered_after_failed_redelivery() -> None:
    delivery = Delivery(ID, ORIGIN, (attempt(1, None), attempt(2, last=True)), {1: NOON})
    assert (delivery.due, delivery.state) == (None, "delivered")


def test_passed_hint_is_due_on_a_clock_set_back() -> None:
    delivery = Delivery(ID, ORIGIN)  # due at NOON
    assert delivery.is_due(NOON, NOON)
    assert delivery.is_due(NOON - timedelta(minutes=1), NOON)
    assert not delivery.is_due(NOON - timedelta(minutes=1), NOON - timedelta(seconds=1)), "a stale hint"
    assert not Delivery(ID, ORIGIN, (attempt(1, None),)).is_due(NOON, NOON)


# --- claims


def test_a_claim_holds_for_its_attempt_until_it_ends() -> None:
    claim = Claim(2, NOON + timedelta(seconds=20), "worker-1")
    assert Claim.parse(str(claim)) == claim
    claimed = Delivery(ID, ORIGIN, (attempt(1),), claim=str(claim))
    assert blocked_until(claimed, NOON) == claim.until
    assert blocked_until(claimed, claim.until) is None
    assert blocked_until(Delivery(ID, ORIGIN, (attempt(1), attempt(2)), claim=str(claim)), NOON) is None
    assert blocked_until(Delivery(ID, ORIGIN), NOON) is None


# --- outcomes and standing


def attempted(reason: str | None, **fields: object) -> WebhookAttempted:
    return WebhookAttempted.model_validate(
        {
            "request_id": "r",
            "time": NOON,
            "webhook_id": ID,
            "attempt": 3,
            "milliseconds": 5,
            "reason": reason,
            **fields,
        }
    )


def test_last_attempt_has_outcome() -> None:
    delivered = outcome_of(attempted(None, run=1, after_attempt=2))
    assert delivered == WebhookDelivered(request_id="r", time=NOON, webhook_id=ID, run=1, attempts=3, after_attempt=2)
    failed = outcome_of(attempted("http_410", last=True))
    assert failed == WebhookFailed(request_id="r", time=NOON, webhook_id=ID, attempts=3, reason="http_410")
    assert outcome_of(attempted("http_500", next_attempt_at=NOON)) is None
    assert outcome_of(attempted("http_500")) is None, "what was written before there was a word of the last one"


def about(cls: type[Event], **fields: object) -> Event:
    return cls.model_validate({"request_id": "r", "webhook_id": ID, "attempts": 1, "reason": "http_500", **fields})


COMPLETED: RequestCompleted = completed("r", webhook_url="https://receiver.example/")
COMPLETED_AGAIN = completed("r", webhook_url="https://receiver.example/", run=1)
FAILED = about(WebhookFailed)
DELIVERED = about(WebhookDelivered)
REDELIVERY = about(WebhookRedeliveryRequested, after_attempt=8)
FAILED_AGAIN = about(WebhookFailed, after_attempt=8)


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ([COMPLETED], "pending"),
        ([COMPLETED, DELIVERED], "delivered"),
        ([COMPLETED, FAILED], "failed"),
        ([COMPLETED, DELIVERED, FAILED], "delivered"),
        ([COMPLETED, FAILED, REDELIVERY], "pending"),
        ([COMPLETED, FAILED, REDELIVERY, FAILED_AGAIN], "failed"),
        ([COMPLETED, DELIVERED, REDELIVERY], "delivered"),
        ([COMPLETED, DELIVERED, REDELIVERY, FAILED_AGAIN], "delivered"),
        ([COMPLETED, DELIVERED, COMPLETED_AGAIN], "pending"),
        ([COMPLETED, DELIVERED, COMPLETED_AGAIN, about(WebhookFailed, run=1)], "failed"),
        ([COMPLETED, about(WebhookDelivered, kind="image.processed")], "pending"),
    ],
)
def test_order_of_events_does_not_change_delivery_status(events: Sequence[Event], state: str) -> None:
    for order in permutations(events):
        greatest = max(said for event in order if (said := delivery_status(event)) is not None)
        assert greatest.state == state


def test_request_without_receiver_has_no_delivery_status() -> None:
    assert delivery_status(completed(webhook_url=None)) is None
