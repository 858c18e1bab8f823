"""The caller's W3C Trace Context: the ``traceparent`` header."""

from aiohttp import web

from api.contract.routes import Parameter
from streams.events.trace_context import HEADER, usable

TRACEPARENT = Parameter(
    HEADER,
    "header",
    str,
    "W3C Trace Context of the caller, which all events of the request continue; without a valid one, the request id is"
    " the trace id",
    "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
)


def context_of(request: web.Request) -> str | None:
    """The caller's trace context; None without a valid header."""
    return usable(request.headers.getall(HEADER, ()))
