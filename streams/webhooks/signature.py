"""Signing and verifying a message: Standard Webhooks 1.0, symmetric signatures.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

TOLERANCE = 300.0
"""Largest age of a message in seconds, against replay attacks (the spec's advice)."""


class VerificationError(Exception):
    """The signature doesn't match, or the timestamp is too old; the message says which."""


def owner_keys(keys: Sequence[bytes], owner: str) -> list[bytes]:
    """The signing keys of an owner, each derived from one of ``keys``; without API keys ("") these themselves.

    So the receiver of one tenant accepts no message to another.
    """
    if not owner:
        return list(keys)
    return [hmac.digest(key, b"shrinkstream/webhooks/" + owner.encode(), hashlib.sha256) for key in keys]


def sign(key: bytes, webhook_id: str, timestamp: int, body: bytes) -> str:
    """The signature of one delivery attempt: version 1, HMAC-SHA256 over ``id.timestamp.body``."""
    signed = b"%s.%d.%s" % (webhook_id.encode(), timestamp, body)
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def signed_headers(keys: Sequence[bytes], webhook_id: str, now: datetime, body: bytes) -> dict[str, str]:
    """The headers of one delivery attempt; during a rotation of the secret, with a signature of each key."""
    timestamp = int(now.timestamp())
    headers = {"webhook-id": webhook_id, "webhook-timestamp": str(timestamp)}
    if keys:
        headers["webhook-signature"] = " ".join(sign(key, webhook_id, timestamp, body) for key in keys)
    return headers


def verify(keys: Sequence[bytes], headers: Mapping[str, str], body: bytes, now: datetime) -> None:
    """Verify a received message; ``headers`` have lower-case names. Raises VerificationError."""
    webhook_id, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not (webhook_id and timestamp.isascii() and timestamp.isdecimal() and len(timestamp) < 12):
        raise VerificationError("webhook-id or webhook-timestamp is missing or malformed")
    age = (now - datetime.fromtimestamp(int(timestamp), UTC)).total_seconds()
    if abs(age) > TOLERANCE:
        raise VerificationError(f"it is {age:.0f} seconds old")
    sent = headers.get("webhook-signature", "").encode().split(b" ")
    good = [sign(key, webhook_id, int(timestamp), body).encode() for key in keys]
    # Every pair is compared, in constant time, against timing attacks.
    if not any([hmac.compare_digest(one, other) for one in sent for other in good]):  # noqa: C419
        raise VerificationError("no signature matches")
