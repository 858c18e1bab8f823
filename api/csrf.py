"""Keeps web pages of others out of an API that asks for no keys, which the browser of its user reaches.

A page may send a form to any address without asking (https://fetch.spec.whatwg.org/#http-cors-protocol), and one
whose own name comes to mean 127.0.0.1 (DNS rebinding) may even read the answers. Programs have no reason for either.
"""

from http import HTTPStatus
from ipaddress import ip_address
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from api.problems import Problem
from infra.settings import Settings, parse_origins


class ForeignPages:
    """Tells a request of such a page by its headers, which a page can't change."""

    def __init__(self, settings: Settings) -> None:
        self._origins = parse_origins(settings.cors_origins)
        self._any_host = settings.open_network
        self._public_host = urlsplit(settings.public_url or "").hostname

    def refuse(self, request: web.Request) -> None:
        """Raise a 403 where a page of somebody else has made the request."""
        host = request.headers.get(hdrs.HOST, "")
        if not self._any_host and not self._is_own(host):
            raise _foreign("the API is known neither by the name in `Host` nor by SHRINKSTREAM_PUBLIC_URL")
        # https://www.w3.org/TR/fetch-metadata/#sec-fetch-site-header: only a browser sends it, and always truly.
        across_sites = request.headers.get("Sec-Fetch-Site") == "cross-site"
        if request.method == hdrs.METH_POST and across_sites:
            origin = request.headers.get(hdrs.ORIGIN, "")
            if not self._origins & {origin, "*"}:
                raise _foreign("SHRINKSTREAM_CORS_ORIGINS does not name the page that sends this")

    def _is_own(self, host: str) -> bool:
        """Whether it is no name that somebody else may have registered: those have a dot."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        return "." not in name or name.endswith(".localhost") or name == self._public_host or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _foreign(detail: str) -> Problem:
    return Problem(HTTPStatus.FORBIDDEN, "foreign-page", detail)
