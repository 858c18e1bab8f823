"""Security headers of every response (CSP, nosniff, framing); hides the server version."""

from collections.abc import Mapping

from aiohttp import web

SERVER = "shrinkstream"  # aiohttp's default reveals its version and Python's

_DEFAULTS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def add_security_headers(response: web.StreamResponse, extra: Mapping[str, str] | None = None) -> None:
    """Add the default headers and ``extra`` to a response; headers that it already has win."""
    for name, value in {**_DEFAULTS, **(extra or {})}.items():
        response.headers.setdefault(name, value)
    response.headers["Server"] = SERVER
