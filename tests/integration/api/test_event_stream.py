"""Streams of status objects over real sockets: few for many changes, none left behind, none that fill the memory."""

import asyncio
from itertools import count

import aiohttp
import pytest

from api.requests import sse as event_stream
from api.requests.sse import STREAMS
from infra.settings import Settings
from tests.support.api_server import serving_api
from tests.support.changelog import Changelog
from tests.support.examples import created, processed, requested
from tests.support.waiting import eventually


@pytest.mark.slow
async def test_changes_are_coalesced_and_silent_stream_sends_heartbeats(
    settings: Settings, request_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "HEARTBEAT", 0.5)

    async with (
        serving_api(settings) as (server, _),
        Changelog(settings) as changelog,
        aiohttp.ClientSession() as client,
    ):
        await changelog.fold(created(request_id, total=1000))
        async with client.get(server.make_url(f"/api/requests/{request_id}/events")) as response:
            text = b""

            async def has(what: bytes) -> bool:
                nonlocal text
                text += await response.content.readany()
                return what in text

            await eventually(lambda: has(b'"succeeded":0'))
            for index in range(300):
                await changelog.fold(processed(requested(request_id, index)))
            await eventually(lambda: has(b'"succeeded":300'))
            assert text.count(b"data: ") < 60
            await eventually(lambda: has(b": still here\n\n"))


async def test_streams_are_limited_and_freed_on_disconnect(settings: Settings, request_id: str) -> None:
    bounded = settings.model_copy(update={"max_event_streams": 2})
    async with (
        serving_api(bounded) as (server, app),
        Changelog(bounded) as changelog,
        aiohttp.ClientSession() as client,
    ):
        await changelog.fold(created(request_id))
        url = server.make_url(f"/api/requests/{request_id}/events")
        streams = [await client.get(url) for _ in range(2)]
        assert [stream.status for stream in streams] == [200, 200]
        async with client.get(url) as refused:
            assert (refused.status, refused.content_type) == (503, "application/problem+json")
            assert "Retry-After" in refused.headers
        for stream in streams:
            stream.close()

        async def none_left() -> bool:
            return app[STREAMS].open == 0

        await eventually(none_left)


@pytest.mark.slow
async def test_idle_stream_reader_is_disconnected_in_bounded_memory(
    settings: Settings, request_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "WRITE_TIMEOUT", 0.5)
    monkeypatch.setattr(event_stream, "MIN_INTERVAL", 0.0)
    monkeypatch.setattr(event_stream, "_data", lambda status: b"x" * 4_000_000 + b"%d" % status.succeeded)

    async with serving_api(settings) as (server, app), Changelog(settings) as changelog:
        await changelog.fold(created(request_id, total=1000))
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
        writer.write(f"GET /api/requests/{request_id}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert (await reader.readline()).endswith(b"200 OK\r\n")
        indexes = count()

        async def dropped() -> bool:
            await changelog.fold(processed(requested(request_id, next(indexes))))
            return app[STREAMS].open == 0

        await eventually(dropped)
        writer.close()


async def test_server_shutdown_does_not_wait_for_streams(settings: Settings, request_id: str) -> None:
    async with aiohttp.ClientSession() as client:
        async with serving_api(settings) as (server, app), Changelog(settings) as changelog:
            await changelog.fold(created(request_id))
            stream = await client.get(server.make_url(f"/api/requests/{request_id}/events"))
            assert app[STREAMS].open == 1
        assert app[STREAMS].open == 0
        text = await stream.content.read()
        assert text.startswith(b"retry: ")
