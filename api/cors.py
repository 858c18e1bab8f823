"""Which web pages may use the API from a browser (https://fetch.spec.whatwg.org/#http-cors-protocol).

Off unless the settings name origins. Cookies are never allowed: a key travels in a header that the page sets.
"""

from http import HTTPStatus

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

ALLOWED_METHODS = "GET, HEAD, POST"
ALLOWED_HEADERS = "Authorization, Content-Type, Idempotency-Key, If-None-Match, Last-Event-ID, Traceparent, X-API-Key"
EXPOSED_HEADERS = "Content-Disposition, ETag, Location, Retry-After"
MAX_AGE_SECONDS = "600"


def cors_middleware(origins: frozenset[str]) -> Middleware:
    """Answer browsers' preflight requests, and mark answers as readable for pages of these origins."""

    @web.middleware
    async def share(request: web.Request, handler: Handler) -> web.StreamResponse:
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is None or not origins & {origin, "*"}:
            return await handler(request)
        asked = hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
        if request.method == hdrs.METH_OPTIONS and asked:
            return web.Response(
                status=HTTPStatus.NO_CONTENT,
                headers={
                    hdrs.ACCESS_CONTROL_ALLOW_METHODS: ALLOWED_METHODS,
                    hdrs.ACCESS_CONTROL_ALLOW_HEADERS: ALLOWED_HEADERS,
                    hdrs.ACCESS_CONTROL_MAX_AGE: MAX_AGE_SECONDS,
                },
            )
        return await handler(request)

    return share


def readable_for(origins: frozenset[str], request: web.BaseRequest) -> dict[str, str]:
    """The headers that let a page of the request's origin read the answer."""
    if not origins:
        return {}
    vary: dict[str, str] = {} if "*" in origins else {hdrs.VARY: hdrs.ORIGIN}
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is None or not origins & {origin, "*"}:
        return vary
    return vary | {
        hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: "*" if "*" in origins else origin,
        hdrs.ACCESS_CONTROL_EXPOSE_HEADERS: EXPOSED_HEADERS,
    }
