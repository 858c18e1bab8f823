"""What every answer carries: it is nothing to be run, framed or guessed at, and it doesn't say what it is made with."""

from collections.abc import Mapping

from aiohttp import web

SERVER = "shrinkstream"  # aiohttp would tell its version and Python's

_UNLESS_GIVEN = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def complete(response: web.StreamResponse, more: Mapping[str, str] | None = None) -> None:
    """Add these headers and ``more`` to an answer, but for those that it has already."""
    for name, value in {**_UNLESS_GIVEN, **(more or {})}.items():
        response.headers.setdefault(name, value)
    response.headers["Server"] = SERVER
