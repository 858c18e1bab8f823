"""Problem details (RFC 9457) for protocol errors, such as malformed HTTP, that no middleware sees."""

import asyncio
from contextlib import ExitStack
from http import HTTPStatus
from typing import Any

import structlog
from aiohttp import web

from api.http.metrics import count
from api.http.problems import CONTENT_TYPE, Problem, ProblemCode, internal_error
from api.http.quotas import ConcurrencyLimit
from api.http.rate_limit import network_of
from api.http.security_headers import add_security_headers

logger = structlog.get_logger(__name__)


class ProblemRunner(web.AppRunner):
    """``web.AppRunner`` that answers protocol errors with problem details.

    aiohttp 3.14 has no setting for this: it answers in plain text, echoes the malformed input and logs a traceback.
    """

    def __init__(self, app: web.Application, connections: ConcurrencyLimit, **options: Any) -> None:
        super().__init__(app, **options)
        self._connections = connections

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        made = _Server(server.request_handler, request_factory=server.request_factory, **server._kwargs)
        made.slots = self._connections
        return made


class _Server(web.Server):
    slots: ConcurrencyLimit

    def __call__(self) -> web.RequestHandler:
        return _Protocol(self, self.slots, loop=self._loop, **self._kwargs)


class _Protocol(web.RequestHandler):
    def __init__(self, server: _Server, slots: ConcurrencyLimit, **options: Any) -> None:
        super().__init__(server, **options)
        self._slots = slots
        self._place = ExitStack()
        self._refused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peer = transport.get_extra_info("peername")
        try:
            self._place.enter_context(self._slots.take(network_of(peer[0] if peer else None)))
        except Problem as problem:
            self._refused = True  # nothing of the connection is read, and the server doesn't know it
            assert isinstance(transport, asyncio.Transport)
            transport.write(_refusal(problem))
            transport.close()
        else:
            super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._place.close()
        if not self._refused:
            super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("response already started; aborting the connection")
        if isinstance(exc, Problem):
            problem = exc
        elif status < HTTPStatus.INTERNAL_SERVER_ERROR:
            logger.info("malformed http request", remote=request.remote, error=type(exc).__name__)
            problem = Problem(ProblemCode.BROKEN_HTTP, "malformed HTTP/1.1 request", status=HTTPStatus(status))
        else:
            logger.error("request failed", exc_info=exc)
            problem = internal_error()
        count(request.method, problem.status)
        response = problem.response()
        add_security_headers(response)
        response.force_close()
        return response


def _refusal(problem: Problem) -> bytes:
    count("other", problem.status)
    response = problem.response()
    assert isinstance(response.body, bytes)
    head = f"HTTP/1.1 {problem.status.value} {problem.status.phrase}\r\nContent-Type: {CONTENT_TYPE}\r\n" + "".join(
        f"{name}: {value}\r\n" for name, value in problem.headers.items()
    )
    return f"{head}Content-Length: {len(response.body)}\r\nConnection: close\r\n\r\n".encode() + response.body


async def expect(request: web.Request) -> None:
    """Handle the ``Expect`` header (RFC 9110, 10.1.1): 100 Continue, or 417 for any other expectation."""
    if request.headers["Expect"].lower() != "100-continue":
        raise Problem(ProblemCode.EXPECTATION_FAILED, "only `Expect: 100-continue` is supported")
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # the final response has not started
