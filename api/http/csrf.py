"""CSRF and DNS-rebinding protection for an API without keys.

A page may post a form to any address without a preflight (https://fetch.spec.whatwg.org/#http-cors-protocol), and a
page whose host name resolves to 127.0.0.1 (DNS rebinding) can even read the responses.
"""

from ipaddress import ip_address
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from api.http.problems import Problem, ProblemCode
from infra.settings import Settings, parse_origins


class CsrfGuard:
    """Rejects requests by `Host`, `Origin` and `Sec-Fetch-Site`, which a page can't forge."""

    def __init__(self, settings: Settings) -> None:
        self._origins = parse_origins(settings.cors_origins)
        self._any_host = settings.open_network
        self._public_host = urlsplit(settings.public_url or "").hostname

    def check(self, request: web.Request) -> None:
        """Raise a 403 for an unknown `Host`, or for a cross-site POST from an origin that CORS doesn't allow."""
        host = request.headers.get(hdrs.HOST, "")
        if not self._any_host and not self._is_own(host):
            raise _forbidden(
                "`Host` is not a name of this API (DNS-rebinding protection): set SHRINKSTREAM_PUBLIC_URL to allow it"
            )
        # https://www.w3.org/TR/fetch-metadata/#sec-fetch-site-header: set by the browser, not by the page.
        is_cross_site = request.headers.get("Sec-Fetch-Site") == "cross-site"
        if request.method == hdrs.METH_POST and is_cross_site:
            origin = request.headers.get(hdrs.ORIGIN, "")
            if not self._origins & {origin, "*"}:
                raise _forbidden(
                    "cross-site request (CSRF protection): set SHRINKSTREAM_CORS_ORIGINS to allow this origin"
                )

    def _is_own(self, host: str) -> bool:
        """Whether an attacker can't control the name in DNS: no dot, `.localhost`, the public host or an IP address."""
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


def _forbidden(detail: str) -> Problem:
    return Problem(ProblemCode.FOREIGN_PAGE, detail)
