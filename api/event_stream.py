"""The status object at each change, as Server-Sent Events.

https://html.spec.whatwg.org/multipage/server-sent-events.html: the data is the status object as
``/api/status/{id}`` has it, the id its fingerprint. A client that comes back with ``Last-Event-ID`` is told nothing
before something is other than what it knows, and 204, which ends its reconnecting, where nothing more will be.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus

import orjson
from aiohttp import web

from api.context import CONTEXT, Context
from api.models import StatusEvent
from api.problems import Problem
from api.routes import Answer, Parameter, Route
from api.status import REQUEST_ID, REQUEST_PROBLEMS, fingerprint, status_of
from infra.cassandra.session import CassandraUnavailableError
from streams.progress.view import StaleViewError
from streams.request.status import Status

LEAST_PAUSE = 0.25  # seconds between two events: what changes meanwhile is told in one
HEARTBEAT = 15.0  # seconds of silence; proxies close what is silent for a minute
LOOK_UP = 1.0  # how soon a stream notices that its client has gone, or that the process is to end
RECONNECT_MS = 2000
SLOW_CLIENT = 30.0  # seconds that a client may take nothing although there is something

_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would hold events back
}


class EventStreams:
    """The streams of this process: how many there are, and their common end."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.open = 0
        self.closing = False

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """Count a stream for as long as it lasts; Problem where there are too many."""
        if self.open >= self._most:
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "too-many-streams",
                "as many clients as possible are following requests; poll the status instead",
                headers={"Retry-After": "5"},
            )
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1


STREAMS = web.AppKey("streams", EventStreams)


async def events(request: web.Request) -> web.StreamResponse:
    """``GET /api/requests/{id}/events``: ends after the event that says anything else than processing."""
    status = await status_of(request)
    seen = request.headers.get("Last-Event-ID", "")
    if status.status != "processing" and fingerprint(_data(status)) == seen:
        return web.Response(status=HTTPStatus.NO_CONTENT)
    if request.method == "HEAD":
        return web.Response(headers=_HEADERS)
    with request.app[STREAMS].one_more():
        response = web.StreamResponse(headers=_HEADERS)
        try:
            await response.prepare(request)
            await _write(response, b"retry: %d\n\n" % RECONNECT_MS)
            await _tell(request, response, seen)
            await response.write_eof()
        except ConnectionError:
            pass  # the client has gone, which it may at any time
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()  # what it hasn't taken by now must not wait in memory
        return response


async def _tell(request: web.Request, response: web.StreamResponse, seen: str) -> None:
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
                    changed.set()  # what is not known just now is told when it is
                elif (mark := fingerprint(data := _data(status))) != seen:
                    await _write(response, b"id: %s\ndata: %s\n\n" % (mark.encode(), data))
                    seen, written_at = mark, loop.time()
                    if status.status != "processing":
                        return
                await asyncio.sleep(LEAST_PAUSE)
            elif loop.time() - written_at > HEARTBEAT:
                await _write(response, b": still here\n\n")
                written_at = loop.time()


async def _is_set(changed: asyncio.Event) -> bool:
    with suppress(TimeoutError):
        await asyncio.wait_for(changed.wait(), LOOK_UP)
    return changed.is_set()


async def _status(context: Context, request_id: str) -> Status | None:
    try:
        return await context.status(request_id)
    except (StaleViewError, CassandraUnavailableError):
        return None


async def _write(response: web.StreamResponse, data: bytes) -> None:
    # Waits as soon as the client has some tens of kilobytes to take.
    await asyncio.wait_for(response.write(data), SLOW_CLIENT)


def _data(status: Status) -> bytes:
    return orjson.dumps(status.as_dict())


async def end_streams(app: web.Application) -> None:
    """For the application's shutdown, which else would wait for clients that have no reason to go."""
    app[STREAMS].closing = True


def routes() -> list[Route]:
    return [
        Route(
            "GET",
            "/api/requests/{request_id}/events",
            events,
            tag="Requests",
            summary="Follow a request",
            description="Server-Sent Events: `data` is the status object, at each change; the stream ends when the"
            " request is not `processing` any more.",
            parameters=(
                REQUEST_ID,
                Parameter("Last-Event-ID", "header", str, "`id` of the last event that the client has seen"),
            ),
            answers={
                HTTPStatus.OK: Answer("The events", {"text/event-stream": StatusEvent}),
                HTTPStatus.NO_CONTENT: Answer("Nothing more will be told than the client has seen"),
            },
            problems=REQUEST_PROBLEMS,
        )
    ]
