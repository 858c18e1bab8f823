"""Request counter and latency by route template; raw paths would be unbounded label values."""

import time
from functools import cache

from aiohttp import web
from aiohttp.typedefs import Handler

from infra.observability import metrics

UNMATCHED = "unmatched"
CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a request whose client disconnected before the response."""

UNTIMED = ("text/event-stream", "application/zip")
"""The duration of an event stream or archive is the client's choice, not our latency."""

_METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS"})
_seconds_of = cache(metrics.HTTP_SECONDS.labels)
_requests_of = cache(metrics.HTTP_REQUESTS.labels)


@web.middleware
async def http_metrics(request: web.Request, handler: Handler) -> web.StreamResponse:
    started = time.perf_counter()
    metrics.HTTP_IN_FLIGHT.inc()
    status, timed = CLIENT_CLOSED_REQUEST, True
    try:
        response = await handler(request)
        status, timed = response.status, response.content_type not in UNTIMED
    except web.HTTPException as error:
        status = error.status
        raise
    else:
        return response
    finally:
        metrics.HTTP_IN_FLIGHT.dec()
        resource = request.match_info.route.resource
        route = resource.canonical if resource is not None else UNMATCHED
        count(request.method, status, route)
        if timed:
            _seconds_of(route).observe(time.perf_counter() - started)


def count(method: str, status: int, route: str = UNMATCHED) -> None:
    """Count a response; ``UNMATCHED`` for requests that failed before routing."""
    _requests_of(method if method in _METHODS else "other", route, str(status)).inc()
