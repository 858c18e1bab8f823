"""CSRF and DNS-rebinding protection for an API without keys.

A page may post a form to any address without a preflight (https://fetch.spec.whatwg.org/#http-cors-protocol), and a
page whose host name resolves to 127.0.0.1 (DNS rebinding) can even read the responses.
"""

from ipaddress import IPv6Address, ip_address
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from api.http.problems import Problem, ProblemCode
from infra.settings import Settings, parse_origins


class CsrfGuard:
    """Rejects requests by `Host`, `Origin` and `Sec-Fetch-Site`, which a page can't forge."""

    def __init__(self, settings: Settings) -> None:
        public = urlsplit((settings.public_url or "").lower())
        self._public_host = public.hostname
        self._origins = parse_origins(settings.cors_origins) | {f"{public.scheme}://{public.netloc}"}
        self._open_network = settings.open_network
        self._any_host = settings.open_network and settings.public_url is None

    def check(self, request: web.Request) -> None:
        """Raise a 403 for an unknown `Host`, or for a POST or DELETE by a page of an origin that CORS doesn't allow."""
        host = request.headers.get(hdrs.HOST, "").lower()
        if not self._any_host and not self._is_own(host):
            raise _forbidden(
                "`Host` is not a name of this API (DNS-rebinding protection): set SHRINKSTREAM_PUBLIC_URL to allow it"
            )
        if request.method in (hdrs.METH_POST, hdrs.METH_DELETE) and self._is_foreign(request, host):
            raise _forbidden(
                "cross-origin request (CSRF protection): set SHRINKSTREAM_CORS_ORIGINS to allow this origin"
            )

    def _is_foreign(self, request: web.Request, host: str) -> bool:
        """Whether a page of another origin sent the request; other programs send none of these headers."""
        # https://www.w3.org/TR/fetch-metadata/#sec-fetch-site-header: browsers send it to trustworthy URLs only
        # (https and loopback, but not 0.0.0.0), `Origin` with every POST.
        site = request.headers.get("Sec-Fetch-Site")
        if site == "same-origin":
            return False
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is None:
            return site in ("cross-site", "same-site")
        is_own = origin in (f"http://{host}", f"https://{host}")
        return not (is_own or self._origins & {origin, "*"})

    def _is_own(self, host: str) -> bool:
        """Whether an attacker can't control the name in DNS: no dot, `.localhost`, the public host or an address."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        return name == self._public_host or self._is_own_address(name) or _is_local_name(name)

    def _is_own_address(self, name: str) -> bool:
        """On loopback a loopback address; 0.0.0.0 and [::ffff:127.0.0.1] reach it too, past a browser's checks."""
        try:
            address = ip_address(name)
        except ValueError:
            return False
        if address.is_unspecified or (isinstance(address, IPv6Address) and address.ipv4_mapped is not None):
            return False
        return self._open_network or address.is_loopback


def _is_local_name(name: str) -> bool:
    return not (":" in name or "." in name) or name.endswith(".localhost")


def _forbidden(detail: str) -> Problem:
    return Problem(ProblemCode.FOREIGN_PAGE, detail)
