"""Problem details (RFC 9457) for protocol errors, such as malformed HTTP, that no middleware sees."""

from http import HTTPStatus

import structlog
from aiohttp import web

from api.http.metrics import count
from api.http.problems import Problem, ProblemCode, internal_error
from api.http.security_headers import add_security_headers

logger = structlog.get_logger(__name__)


class ProblemRunner(web.AppRunner):
    """``web.AppRunner`` that answers protocol errors with problem details.

    aiohttp 3.14 has no setting for this: it answers in plain text, echoes the malformed input and logs a traceback.
    """

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        return _Server(server.request_handler, request_factory=server.request_factory, **server._kwargs)


class _Server(web.Server):
    def __call__(self) -> web.RequestHandler:
        return _Protocol(self, loop=self._loop, **self._kwargs)


class _Protocol(web.RequestHandler):
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


async def expect(request: web.Request) -> None:
    """Handle the ``Expect`` header (RFC 9110, 10.1.1): 100 Continue, or 417 for any other expectation."""
    if request.headers["Expect"].lower() != "100-continue":
        raise Problem(ProblemCode.EXPECTATION_FAILED, "only `Expect: 100-continue` is supported")
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # the final response has not started
