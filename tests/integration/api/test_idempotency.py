"""Idempotency keys on a real Cassandra: of all uploads with one key, exactly one is the first."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from http import HTTPStatus
from uuid import uuid4

import pytest
from aiokafka.errors import KafkaError

from api.http.problems import Problem
from api.uploads import idempotency
from api.uploads.idempotency import LIFETIME_SECONDS, Claim, IdempotencyKeys, sole_writer
from infra.cassandra.session import Session
from infra.settings import Settings
from tests.support.examples import NOON
from tests.support.waiting import eventually


@asynccontextmanager
async def keys(settings: Settings) -> AsyncIterator[tuple[IdempotencyKeys, Session]]:
    session = await Session.connect(settings)
    try:
        yield IdempotencyKeys(session), session
    finally:
        await session.close()


def claim(body: str = "body") -> Claim:
    return Claim(str(uuid4()), body, NOON, is_new=True)


async def test_repeated_uploads_with_a_key_get_first_request(cassandra_settings: Settings) -> None:
    async with keys(cassandra_settings) as (idempotency_keys, _):
        owner, first = str(uuid4()), claim("one body")
        assert await idempotency_keys.claim(owner, "key", first) == first
        later = Claim(str(uuid4()), "another body", NOON + timedelta(hours=1), is_new=True)
        found = await idempotency_keys.claim(owner, "key", later)
        assert found == Claim(first.request_id, "one body", NOON, is_new=False)


async def test_exactly_one_of_concurrent_uploads_is_new(cassandra_settings: Settings) -> None:
    async with keys(cassandra_settings) as (one, _), keys(cassandra_settings) as (two, _):
        for _ in range(3):
            owner = str(uuid4())
            claims = await asyncio.gather(*(api.claim(owner, "key", claim()) for api in (one, two) * 5))
            assert sum(each.is_new for each in claims) == 1
            assert len({each.request_id for each in claims}) == 1


async def test_claim_with_lost_answer_is_still_ours(cassandra_settings: Settings) -> None:
    """The statement is run again, finds its own row, and must not take it for somebody else's upload."""

    async with keys(cassandra_settings) as (idempotency_keys, _):
        owner, ours = str(uuid4()), claim()
        assert await idempotency_keys.claim(owner, "key", ours) == ours
        assert await idempotency_keys.claim(owner, "key", ours) == ours


@pytest.mark.parametrize(
    ("owner", "key"), [("a", "other"), ("b", "key"), ("", "key"), ("a", "ü\u0000'; --"), ("a", " ")]
)
async def test_keys_differ_by_owner_and_every_letter(cassandra_settings: Settings, owner: str, key: str) -> None:
    async with keys(cassandra_settings) as (idempotency_keys, _):
        prefix = str(uuid4())
        await idempotency_keys.claim(f"{prefix}a", "key", claim())
        assert (await idempotency_keys.claim(prefix + owner, key, claim())).is_new


async def test_owner_without_a_name_has_keys(cassandra_settings: Settings) -> None:
    async with keys(cassandra_settings) as (idempotency_keys, _):
        key = str(uuid4())
        assert (await idempotency_keys.claim("", key, claim())).is_new
        assert not (await idempotency_keys.claim("", key, claim())).is_new


async def test_key_is_forgotten_after_its_lifetime(
    cassandra_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with keys(cassandra_settings) as (idempotency_keys, session):
        owner = str(uuid4())
        await idempotency_keys.claim(owner, "kept", claim())
        (row,) = await session.execute(
            "SELECT TTL(request_id) AS seconds FROM idempotency_keys WHERE owner = ? AND key = ?", (owner, "kept")
        )
        assert LIFETIME_SECONDS - 60 < row.seconds <= LIFETIME_SECONDS == 24 * 3600

        monkeypatch.setattr(idempotency, "LIFETIME_SECONDS", 1)
        await idempotency_keys.claim(owner, "forgotten", claim())

        async def is_free() -> bool:
            rows = await session.execute(
                "SELECT * FROM idempotency_keys WHERE owner = ? AND key = ?", (owner, "forgotten")
            )
            return not rows

        await eventually(is_free)
        assert (await idempotency_keys.claim(owner, "forgotten", claim())).is_new


async def test_one_upload_of_a_key_writes_at_a_time(cassandra_settings: Settings) -> None:
    async with keys(cassandra_settings) as (_, session):
        owner, ours = str(uuid4()), claim()
        await IdempotencyKeys(session).claim(owner, "key", ours)
        async with sole_writer(session, owner, "key", ours):
            with pytest.raises(Problem) as refused:
                async with sole_writer(session, owner, "key", ours):
                    raise AssertionError("two uploads write at once")
            assert refused.value.status == HTTPStatus.CONFLICT
            assert int(refused.value.headers["Retry-After"]) > 0


async def test_failed_upload_may_be_repeated_at_once(cassandra_settings: Settings) -> None:
    async with keys(cassandra_settings) as (_, session):
        owner, ours = str(uuid4()), claim()
        await IdempotencyKeys(session).claim(owner, "key", ours)
        with pytest.raises(KafkaError):
            async with sole_writer(session, owner, "key", ours):
                raise KafkaError
        async with sole_writer(session, owner, "key", ours):
            pass


@pytest.mark.slow
async def test_lease_outlives_its_length_and_ends_with_its_process(
    cassandra_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "LEASE_SECONDS", 3)
    async with keys(cassandra_settings) as (idempotency_keys, session):
        owner, ours = str(uuid4()), claim()
        await idempotency_keys.claim(owner, "key", ours)
        renewals = 0

        async def is_free() -> bool:
            return await idempotency_keys.lease(owner, "key", ours.request_id, "successor")

        renew = idempotency_keys.renew

        async def counted(*arguments: str) -> bool:
            nonlocal renewals
            renewals += 1
            return await renew(*arguments)

        monkeypatch.setattr(IdempotencyKeys, "renew", lambda _, *arguments: counted(*arguments))
        async with sole_writer(session, owner, "key", ours):

            async def is_renewed() -> bool:
                return renewals > 3

            await eventually(is_renewed)
            assert not await is_free()
        # After a success it is not released: it expires, as that of a killed process does.
        await eventually(is_free)
        assert not await idempotency_keys.lease(owner, "key", ours.request_id, "third")
        assert await idempotency_keys.lease(owner, "key", ours.request_id, "successor")


async def test_forgotten_key_has_no_lease(cassandra_settings: Settings) -> None:
    async with keys(cassandra_settings) as (idempotency_keys, session):
        owner = str(uuid4())
        assert not await idempotency_keys.lease(owner, "key", str(uuid4()), "writer")
        assert await session.execute("SELECT * FROM idempotency_keys WHERE owner = ? AND key = ?", (owner, "key")) == []
