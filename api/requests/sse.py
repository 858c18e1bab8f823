"""Server-Sent Events: the status object of a request at each change.

https://html.spec.whatwg.org/multipage/server-sent-events.html: the data is the same status object as of
``/api/status/{id}``, the id is its fingerprint. A client that reconnects with ``Last-Event-ID`` receives only newer
events, or 204, which ends its reconnecting, when there will be none.
"""

import asyncio
from contextlib import AbstractContextManager, suppress
from http import HTTPStatus

import orjson
from aiohttp import web

from api.context import CONTEXT, Context
from api.contract.models import StatusEvent
from api.contract.routes import Parameter, Response, Route
from api.http.api_keys import OWNER
from api.http.problems import Problem, ProblemCode
from api.http.quotas import ConcurrencyLimit
from api.requests.status import fingerprint, status_of
from infra.cassandra.session import CassandraUnavailableError
from streams.progress.view import StaleViewError
from streams.request.status import Status

MIN_INTERVAL = 0.25  # seconds between two events; changes in between are coalesced
HEARTBEAT = 15.0  # seconds; proxies close a connection that is idle for a minute
POLL_INTERVAL = 1.0  # seconds until a stream notices a disconnect or a shutdown
RECONNECT_MS = 2000
WRITE_TIMEOUT = 30.0  # seconds for a slow client

_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would buffer the events
}


class EventStreams:
    """The open event streams of this process: their limits and their shutdown."""

    def __init__(self, limit: int, share: int) -> None:
        self._slots = ConcurrencyLimit(limit, share, _too_many)
        self.closing = False

    @property
    def open(self) -> int:
        return self._slots.taken

    def admit(self, owner: str) -> AbstractContextManager[None]:
        """Count a stream while it is open; raise a 503 with Retry-After at the limit."""
        return self._slots.take(owner)


def _too_many(reason: str) -> Problem:
    return Problem(
        ProblemCode.TOO_MANY_STREAMS,
        f"too many event streams: {reason}; poll the status instead",
        headers={"Retry-After": "5"},
    )


STREAMS = web.AppKey("streams", EventStreams)


async def events(request: web.Request) -> web.StreamResponse:
    """``GET /api/requests/{id}/events``: ends after the first event whose status is not ``processing``."""
    status = await status_of(request)
    # The query parameter is that of EventSource polyfills, which can't set headers.
    seen = request.headers.get("Last-Event-ID") or request.query.get("lastEventId", "")
    if status.status != "processing" and fingerprint(_data(status)) == seen:
        return web.Response(status=HTTPStatus.NO_CONTENT)
    if request.method == "HEAD":
        return web.Response(headers=_HEADERS)
    with request.app[STREAMS].admit(request[OWNER]):
        response = web.StreamResponse(headers=_HEADERS)
        try:
            await response.prepare(request)
            await _write(response, b"retry: %d\n\n" % RECONNECT_MS)
            await _stream(request, response, seen)
            await response.write_eof()
        except ConnectionError:
            pass  # the client disconnected, which is no error
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()  # frees the write buffer of the slow client
        return response


async def _stream(request: web.Request, response: web.StreamResponse, seen: str) -> None:
    context, request_id = request.app[CONTEXT], request.match_info["request_id"]
    loop = asyncio.get_running_loop()
    written_at = loop.time()
    with context.view.watching(request_id) as changed:
        changed.set()
        while request.transport is not None and not request.app[STREAMS].closing:
            if await _is_set(changed):
                changed.clear()
                status = await _status(context, request_id)
                if status is None:
                    changed.set()  # unavailable: try again
                elif (mark := fingerprint(data := _data(status))) != seen:
                    await _write(response, b"id: %s\ndata: %s\n\n" % (mark.encode(), data))
                    seen, written_at = mark, loop.time()
                    if status.status != "processing":
                        return
                await asyncio.sleep(MIN_INTERVAL)
            elif loop.time() - written_at > HEARTBEAT:
                await _write(response, b": still here\n\n")
                written_at = loop.time()


async def _is_set(changed: asyncio.Event) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(POLL_INTERVAL):
            await changed.wait()
    return changed.is_set()


async def _status(context: Context, request_id: str) -> Status | None:
    try:
        return await context.status(request_id)
    except (StaleViewError, CassandraUnavailableError):
        return None


async def _write(response: web.StreamResponse, data: bytes) -> None:
    # Backpressure: blocks once some tens of kilobytes are buffered.
    async with asyncio.timeout(WRITE_TIMEOUT):
        await response.write(data)


def _data(status: Status) -> bytes:
    return orjson.dumps(status.as_dict())


async def end_streams(app: web.Application) -> None:
    """Shutdown hook: closes all streams, which would otherwise block a graceful shutdown."""
    app[STREAMS].closing = True


def routes() -> list[Route]:
    return [
        Route(
            "GET",
            "/api/requests/{request_id}/events",
            events,
            tag="Requests",
            summary="Follow a request",
            description="Server-Sent Events: one event per status change, with the status object as `data`; the stream"
            " ends when the request is no longer `processing`.",
            parameters=(
                Parameter("Last-Event-ID", "header", str, "`id` of the last event that the client received"),
                Parameter("lastEventId", "query", str, "the same, for clients that can't send the header"),
            ),
            responses={
                HTTPStatus.OK: Response("The events", {"text/event-stream": StatusEvent}),
                HTTPStatus.NO_CONTENT: Response("The client has received the last event"),
            },
        )
    ]
