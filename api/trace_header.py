"""The trace that a caller is in: its ``traceparent`` header."""

from aiohttp import web

from api.routes import Parameter
from streams.trace_context import HEADER, usable

TRACEPARENT = Parameter(
    HEADER,
    "header",
    str,
    "W3C Trace Context of the caller: all that follows belongs to its trace; without a usable one, the request's id is"
    " the trace's",
    "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
)


def context_of(request: web.Request) -> str | None:
    """The caller's context, if it sent a usable one: whatever else it sent is passed over."""
    return usable(request.headers.getall(HEADER, ()))
