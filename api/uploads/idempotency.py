"""Idempotency keys: an upload that is retried with the same key creates no second request.

https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
"""

from dataclasses import dataclass
from datetime import datetime

from infra.cassandra.session import Session
from streams.projections.history import utc

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
