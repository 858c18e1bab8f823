"""Images over real sockets whose reading breaks off: by the storage, or by a client that falls asleep."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from aiohttp.test_utils import BaseTestServer
from structlog.testing import capture_logs
from structlog.typing import EventDict

from api.requests import download as results
from infra.settings import Settings
from infra.storage import Storage, StorageError, StoredObject
from tests.support.api_server import serving_api
from tests.support.large_image import IMAGE, store_large_image
from tests.support.waiting import eventually


@pytest.fixture
def logs() -> Iterator[list[EventDict]]:
    with capture_logs() as entries:
        yield entries


async def ask(server: BaseTestServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
    writer.write(f"GET /{IMAGE} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode())
    assert (await reader.readline()).endswith(b"200 OK\r\n")
    return reader, writer


async def until_broken_off(logs: list[EventDict]) -> None:
    async def told() -> bool:
        return any(entry["event"] == "response aborted" for entry in logs)

    await eventually(told)
    assert [entry for entry in logs if entry["log_level"] == "error"] == []


async def test_storage_failure_during_image_closes_the_connection(
    settings: Settings, logs: list[EventDict], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"x" * 1000
        raise StorageError("the bucket has gone")

    async def breaking(storage: Storage, key: str) -> StoredObject:
        return StoredObject(5000, None, pieces())

    monkeypatch.setattr(Storage, "get", breaking)

    async with serving_api(settings) as (server, _):
        reader, writer = await ask(server)
        rest = await reader.read(-1)
        assert rest.partition(b"\r\n\r\n")[2] in (b"", b"x" * 1000)
        await until_broken_off(logs)
        writer.close()


async def test_idle_reader_is_disconnected(
    settings: Settings, logs: list[EventDict], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "WRITE_TIMEOUT", 0.3)
    store_large_image(settings)

    async with serving_api(settings) as (server, _):
        _, writer = await ask(server)
        await until_broken_off(logs)
        writer.close()
