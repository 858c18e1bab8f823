"""Idempotency keys: an upload that is retried with the same key creates no second request.

https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
"""

from dataclasses import dataclass
from datetime import datetime
from uuid import uuid4

from aiohttp import web

from api.context import Context
from api.http.problems import Problem, ProblemCode, unavailable
from infra.cassandra.session import CassandraUnavailableError, Session, utc
from streams.events.base import utc_now
from streams.progress.view import StaleViewError

MAX_KEY_CHARS = 255
LIFETIME_SECONDS = 24 * 3600

# IF NOT EXISTS (a lightweight transaction) decides which of two concurrent uploads is first.
_CLAIM = """
    INSERT INTO idempotency_keys (owner, key, request_id, body_sha256, created_at)
    VALUES (?, ?, ?, ?, ?) IF NOT EXISTS USING TTL ?"""


@dataclass(frozen=True)
class Claim:
    """Claim of an idempotency key for a request. ``is_new``: the key was not used before.

    ``fingerprint``: hash of the upload, stored in the column ``body_sha256``.
    """

    request_id: str
    fingerprint: str
    created_at: datetime
    is_new: bool


class IdempotencyKeys:
    """The request of each key that was used in the last 24 hours."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def claim(self, owner: str, key: str, new: Claim) -> Claim:
        """Returns ``new`` if the key is free, else the existing claim. Raises CassandraUnavailableError."""
        (row,) = await self._session.execute(
            _CLAIM, (owner, key, new.request_id, new.fingerprint, new.created_at, LIFETIME_SECONDS), retry_for=5
        )
        # Not applied, but ours: the session retried the statement after a lost response.
        if row.applied or row.request_id == new.request_id:
            return new
        return Claim(row.request_id, row.body_sha256, utc(row.created_at), is_new=False)


def idempotency_key(request: web.Request) -> str:
    key = request.headers.get("Idempotency-Key", "").strip()
    if len(key) > MAX_KEY_CHARS:
        raise Problem(
            ProblemCode.BAD_IDEMPOTENCY_KEY,
            f"the Idempotency-Key is longer than {MAX_KEY_CHARS} characters",
        )
    if not (key.isascii() and key.isprintable()):
        raise Problem(
            ProblemCode.BAD_IDEMPOTENCY_KEY, "the Idempotency-Key has characters that are not printable ASCII"
        )
    return key


async def claim_for(context: Context, owner: str, key: str, fingerprint: str) -> Claim:
    new = Claim(str(uuid4()), fingerprint, utc_now(), is_new=True)
    if not key:
        return new
    try:
        claim = await IdempotencyKeys(context.session).claim(owner, key, new)
    except CassandraUnavailableError:
        raise unavailable("cannot check the Idempotency-Key: Cassandra is unavailable") from None
    if claim.fingerprint != fingerprint:
        raise Problem(
            ProblemCode.IDEMPOTENCY_KEY_REUSED,
            "this Idempotency-Key was used with another file or other fields in the last 24 hours",
        )
    return claim


async def is_request(context: Context, claim: Claim) -> bool:
    """Whether the upload that made the claim has published its events."""
    try:
        return await context.status(claim.request_id) is not None
    except (StaleViewError, CassandraUnavailableError):
        raise unavailable(
            "cannot look up the earlier upload with this Idempotency-Key: Kafka or Cassandra is unavailable"
        ) from None
