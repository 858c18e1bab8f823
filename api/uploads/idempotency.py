"""Idempotency keys: an upload that is retried with the same key creates no second request.

https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from uuid import uuid4

import structlog
from aiohttp import web

from api.context import Context
from api.http.problems import Problem, ProblemCode, unavailable_on
from infra.cancellation import cancel_and_wait
from infra.cassandra.session import CassandraUnavailableError, Session, utc
from streams.events.base import utc_now
from streams.progress.view import StaleViewError

logger = structlog.get_logger(__name__)

MAX_KEY_CHARS = 255
LIFETIME_SECONDS = 24 * 3600
LEASE_SECONDS = 30
"""How long after the end of an API process another upload with the same key must wait."""
WAIT_SECONDS = 8.0
"""How long an upload waits for another one with its key, to answer with the same request."""
POLL_SECONDS = 0.25
IN_PROGRESS_RETRY_AFTER = "5"
RETRY_FOR = 5.0
"""Seconds of retries while Cassandra is unavailable."""
KEY_UNCHECKED = "cannot check the Idempotency-Key: Cassandra is unavailable"

# IF NOT EXISTS (a lightweight transaction) decides which of two concurrent uploads is first.
_CLAIM = """
    INSERT INTO idempotency_keys (owner, key, request_id, body_sha256, created_at)
    VALUES (?, ?, ?, ?, ?) IF NOT EXISTS USING TTL ?"""
_LEASE = """
    UPDATE idempotency_keys USING TTL ? SET writer = ?
    WHERE owner = ? AND key = ? IF request_id = ? AND writer = null"""
_RENEW = "UPDATE idempotency_keys USING TTL ? SET writer = ? WHERE owner = ? AND key = ? IF writer = ?"
_RELEASE = "DELETE writer FROM idempotency_keys WHERE owner = ? AND key = ? IF writer = ?"


@dataclass(frozen=True)
class Claim:
    """Claim of an idempotency key for a request. ``is_new``: the key was not used before.

    ``fingerprint``: hash of the upload, stored in the column ``body_sha256``.
    """

    request_id: str
    fingerprint: str
    created_at: datetime
    is_new: bool


class UploadInProgress(Problem):
    """409: another upload with the same key holds the lease."""

    def __init__(self) -> None:
        super().__init__(
            ProblemCode.UPLOAD_IN_PROGRESS,
            f"another upload with this Idempotency-Key is being processed; retry after {IN_PROGRESS_RETRY_AFTER} s",
            headers={"Retry-After": IN_PROGRESS_RETRY_AFTER},
        )


class IdempotencyKeys:
    """The request of each key that was used in the last 24 hours."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def claim(self, owner: str, key: str, new: Claim) -> Claim:
        """Returns ``new`` if the key is free, else the existing claim. Raises CassandraUnavailableError."""
        (row,) = await self._session.execute(
            _CLAIM, (owner, key, new.request_id, new.fingerprint, new.created_at, LIFETIME_SECONDS), retry_for=RETRY_FOR
        )
        # Not applied, but ours: the session retried the statement after a lost response.
        if row.applied or row.request_id == new.request_id:
            return new
        return Claim(row.request_id, row.body_sha256, utc(row.created_at), is_new=False)

    async def lease(self, owner: str, key: str, request_id: str, writer: str) -> bool:
        """Take the right to publish the claimed request; False while another upload has it."""
        parameters = (LEASE_SECONDS, writer, owner, key, request_id)
        (row,) = await self._session.execute(_LEASE, parameters, retry_for=RETRY_FOR)
        return row.applied or getattr(row, "writer", None) == writer

    async def renew(self, owner: str, key: str, request_id: str, writer: str) -> bool:
        """Extend the lease; False if it expired and another upload took it."""
        (row,) = await self._session.execute(_RENEW, (LEASE_SECONDS, writer, owner, key, writer), retry_for=RETRY_FOR)
        return row.applied or await self.lease(owner, key, request_id, writer)

    async def release(self, owner: str, key: str, writer: str) -> None:
        """End the lease at once, so that the client may repeat the upload."""
        await self._session.execute(_RELEASE, (owner, key, writer))


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
    with unavailable_on(CassandraUnavailableError, reason=KEY_UNCHECKED):
        claim = await IdempotencyKeys(context.session).claim(owner, key, new)
    if claim.fingerprint != fingerprint:
        raise Problem(
            ProblemCode.IDEMPOTENCY_KEY_REUSED,
            "this Idempotency-Key was used with another file or other fields in the last 24 hours",
        )
    return claim


async def is_request(context: Context, claim: Claim) -> bool:
    """Whether the upload that made the claim has published its events."""
    reason = "cannot look up the earlier upload with this Idempotency-Key: Kafka or Cassandra is unavailable"
    with unavailable_on(StaleViewError, CassandraUnavailableError, reason=reason):
        return await context.status(claim.request_id) is not None


async def is_soon_request(context: Context, claim: Claim) -> bool:
    """Whether another upload publishes the claimed request within `WAIT_SECONDS`."""
    deadline = asyncio.get_running_loop().time() + WAIT_SECONDS
    while not await is_request(context, claim):
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(POLL_SECONDS)
    return True


@asynccontextmanager
async def sole_writer(session: Session, owner: str, key: str, claim: Claim) -> AsyncIterator[None]:
    """Hold the lease of the key, if there is one, while the request's events are published.

    Raises UploadInProgress while another upload holds it. A process that is paused for longer than the lease goes on
    beside its successor: both write the same events with the same ids, so that nothing is counted twice.
    """
    if not key:
        yield
        return
    keys, writer = IdempotencyKeys(session), uuid4().hex
    with unavailable_on(CassandraUnavailableError, reason=KEY_UNCHECKED):
        is_ours = await keys.lease(owner, key, claim.request_id, writer)
    if not is_ours:
        raise UploadInProgress
    renewal = asyncio.create_task(_keep_lease(keys, owner, key, claim.request_id, writer), name="idempotency lease")
    try:
        yield
    except BaseException:
        await cancel_and_wait(renewal)
        try:
            await keys.release(owner, key, writer)
        except CassandraUnavailableError as error:
            logger.warning("lease of Idempotency-Key not released; it expires", error=str(error))
        raise
    finally:
        # Not released after a success: a repeated upload finds the request, at the latest when the lease expires.
        await cancel_and_wait(renewal)


async def _keep_lease(keys: IdempotencyKeys, owner: str, key: str, request_id: str, writer: str) -> None:
    while True:
        await asyncio.sleep(LEASE_SECONDS / 3)
        try:
            if not await keys.renew(owner, key, request_id, writer):
                logger.warning("lease of Idempotency-Key lost to another upload", request_id=request_id)
                return
        except CassandraUnavailableError as error:
            logger.warning("cannot renew the lease of an Idempotency-Key", request_id=request_id, error=str(error))
