"""Idempotency-Key: an upload that is repeated, because its answer was lost, makes no second request.

https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
"""

from dataclasses import dataclass
from datetime import datetime

from infra.cassandra.session import Session
from streams.projections.history import utc

LIFETIME_SECONDS = 24 * 3600

# IF NOT EXISTS makes one of two uploads at the same moment the first.
_CLAIM = """
    INSERT INTO idempotency_keys (owner, key, request_id, body_sha256, created_at)
    VALUES (?, ?, ?, ?, ?) IF NOT EXISTS USING TTL ?"""


@dataclass(frozen=True)
class Claim:
    """The request that an upload stands for. ``is_new``: no upload with this key was seen before.

    ``fingerprint``: what tells an upload that is repeated from another one; the column is named for what it was first.
    """

    request_id: str
    fingerprint: str
    created_at: datetime
    is_new: bool


class IdempotencyKeys:
    """Which request each key of the last 24 hours stands for."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def claim(self, owner: str, key: str, new: Claim) -> Claim:
        """``new`` if the key is free, else the claim that was made with it first."""
        (row,) = await self._session.execute(
            _CLAIM, (owner, key, new.request_id, new.fingerprint, new.created_at, LIFETIME_SECONDS), patience=5
        )
        # Ours, too, where an answer was lost and the statement was run again.
        if row.applied or row.request_id == new.request_id:
            return new
        return Claim(row.request_id, row.body_sha256, utc(row.created_at), is_new=False)
