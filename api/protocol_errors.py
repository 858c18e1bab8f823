"""What is refused before any middleware sees it, broken HTTP above all, is answered with a problem too."""

from http import HTTPStatus

import structlog
from aiohttp import web

from api.headers import complete
from api.http_metrics import count
from api.problems import Problem, internal_error

log = structlog.get_logger(__name__)


class ProblemRunner(web.AppRunner):
    """Serves an application like ``web.AppRunner``, but for the form of such answers.

    aiohttp 3.14 has no setting for that: it answers in plain text, repeats what it couldn't read and logs a traceback
    for each.
    """

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(made.request_handler, request_factory=made.request_factory, **made._kwargs)


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
            raise ConnectionError("the answer has begun, so it can only be broken off")
        if isinstance(exc, Problem):
            problem = exc
        elif status < HTTPStatus.INTERNAL_SERVER_ERROR:
            log.info("broken http", remote=request.remote, error=type(exc).__name__)
            problem = Problem(HTTPStatus(status), "broken-http", "this is not HTTP/1.1 as it should be")
        else:
            log.error("request failed", exc_info=exc)
            problem = internal_error()
        count(request.method, problem.status)
        answer = problem.response()
        complete(answer)
        answer.force_close()
        return answer


async def expect(request: web.Request) -> None:
    """Answer to the header ``Expect`` (RFC 9110, 10.1.1): go on, or there is nothing else that we can meet."""
    if request.headers["Expect"].lower() != "100-continue":
        raise Problem(HTTPStatus.EXPECTATION_FAILED, "expectation-failed", "only `Expect: 100-continue` is known here")
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # the answer itself has not begun
