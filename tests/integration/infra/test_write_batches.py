"""Writes in batches, on a real Cassandra."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from cassandra import InvalidRequest

from infra.cassandra.session import Session
from infra.cassandra.write_batches import WriteBatches
from infra.devserver.cassandra import EmbeddedCassandra
from infra.settings import Settings

INSERT = "INSERT INTO requests (request_id, owner) VALUES (?, ?)"


class NotingSession(Session):
    """A session that remembers the size of each batch."""

    batches: list[list[int]]

    async def write_batch(self, writes: Sequence[tuple[str, Sequence[Any]]], *, retry_for: float = 0) -> None:
        self.batches.append([sum(map(len, parameters)) for _, parameters in writes])
        await super().write_batch(writes, retry_for=retry_for)


async def connect(settings: Settings) -> NotingSession:
    session = await NotingSession.connect(settings)
    assert isinstance(session, NotingSession)
    session.batches = []
    return session


@pytest.mark.slow
@pytest.mark.parametrize(("batch_bytes", "max_writes"), [(5 * 1024, 10), (EmbeddedCassandra.batch_bytes, 40)])
async def test_concurrent_writes_share_batches_within_cassandras_limits(
    cassandra_settings: Settings, request_id: str, batch_bytes: int, max_writes: int
) -> None:
    owners = [str(number) * (2000 if number % 20 == 0 else 100) for number in range(200)]

    session = await connect(cassandra_settings.model_copy(update={"cassandra_batch_bytes": batch_bytes}))
    try:
        writes = WriteBatches(session, retry_for=5, in_flight=2)
        await asyncio.gather(
            *(writes.write(INSERT, (f"{request_id}-{number}", owner)) for number, owner in enumerate(owners))
        )
        for number, owner in enumerate(owners):
            (row,) = await session.execute(
                "SELECT owner FROM requests WHERE request_id = ?", (f"{request_id}-{number}",)
            )
            assert row.owner == owner
        assert len(session.batches) < len(owners) / 4
        assert max(map(len, session.batches)) == writes.max_writes == max_writes
        assert max(map(sum, session.batches)) <= writes.max_bytes == batch_bytes
    finally:
        await session.close()


async def test_write_larger_than_a_batch_travels_alone(cassandra_settings: Settings, request_id: str) -> None:
    session = await connect(cassandra_settings)
    try:
        writes = WriteBatches(session, retry_for=5, in_flight=1)
        owners = ["small", "x" * 3 * writes.max_bytes, "small"]
        await asyncio.gather(
            *(writes.write(INSERT, (f"{request_id}-{number}", owner)) for number, owner in enumerate(owners))
        )
        assert session.batches == []
        (row,) = await session.execute("SELECT owner FROM requests WHERE request_id = ?", (f"{request_id}-1",))
        assert row.owner == owners[1]
    finally:
        await session.close()


async def test_refused_write_fails_its_caller_and_no_later_write(cassandra_settings: Settings, request_id: str) -> None:
    session = await connect(cassandra_settings)
    try:
        writes = WriteBatches(session, retry_for=5, in_flight=1)
        bad = [writes.write("INSERT INTO no_such_table (a) VALUES (?)", (str(number),)) for number in range(3)]
        outcomes = await asyncio.gather(*bad, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [InvalidRequest] * 3
        with pytest.raises(InvalidRequest):
            await writes.write("INSERT INTO no_such_table (a) VALUES (?)", ("one more",))
        await writes.write(INSERT, (request_id, "after it"))
        (row,) = await session.execute("SELECT owner FROM requests WHERE request_id = ?", (request_id,))
        assert row.owner == "after it"
    finally:
        await session.close()
