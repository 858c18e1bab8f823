"""CORS (https://fetch.spec.whatwg.org/#http-cors-protocol).

Disabled unless the settings name origins. Credentials are never allowed: a page sends its API key in a header.
"""

from http import HTTPStatus

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

ALLOWED_METHODS = "GET, HEAD, POST, DELETE"
ALLOWED_HEADERS = "Authorization, Content-Type, Idempotency-Key, If-None-Match, Last-Event-ID, Traceparent, X-API-Key"
EXPOSED_HEADERS = "Content-Disposition, ETag, Location, Retry-After"
MAX_AGE_SECONDS = "600"


def cors_middleware(origins: frozenset[str]) -> Middleware:
    """Response preflight requests of the allowed origins."""

    @web.middleware
    async def preflight(request: web.Request, handler: Handler) -> web.StreamResponse:
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is None or not origins & {origin, "*"}:
            return await handler(request)
        if request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers:
            return web.Response(
                status=HTTPStatus.NO_CONTENT,
                headers={
                    hdrs.ACCESS_CONTROL_ALLOW_METHODS: ALLOWED_METHODS,
                    hdrs.ACCESS_CONTROL_ALLOW_HEADERS: ALLOWED_HEADERS,
                    hdrs.ACCESS_CONTROL_MAX_AGE: MAX_AGE_SECONDS,
                },
            )
        return await handler(request)

    return preflight


def cors_headers(origins: frozenset[str], request: web.BaseRequest) -> dict[str, str]:
    """The CORS headers that let the request's origin read the response."""
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
