"""Counts and times every answer, by the pattern of its route: a path is as long as somebody likes."""

import time
from functools import cache

from aiohttp import web
from aiohttp.typedefs import Handler

from infra import metrics

UNMATCHED = "unmatched"
GONE = 499
"""What nginx calls a request whose client went away before it was answered."""

_METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS"})
_seconds_of = cache(metrics.HTTP_SECONDS.labels)
_requests_of = cache(metrics.HTTP_REQUESTS.labels)


@web.middleware
async def http_metrics(request: web.Request, handler: Handler) -> web.StreamResponse:
    started = time.perf_counter()
    metrics.HTTP_IN_FLIGHT.inc()
    status, timed = GONE, True
    try:
        response = await handler(request)
        # How long a client follows a request says nothing about us.
        status, timed = response.status, response.content_type != "text/event-stream"
    except web.HTTPException as answer:
        status = answer.status
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
    """Count an answer; also to what was refused before any route was looked for."""
    _requests_of(method if method in _METHODS else "other", route, str(status)).inc()
