"""Conditional requests: ``If-None-Match`` (RFC 9110, 13.1.2)."""

from aiohttp import web


def is_current(request: web.Request, etag: str) -> bool:
    """Whether the client's copy has this ``ETag``, by weak comparison."""
    known = request.if_none_match or ()
    return any(tag.value in ("*", etag.strip('"')) for tag in known)
