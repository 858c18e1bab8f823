"""Cookies within one chain of redirects (RFC 6265): some hosts set one and redirect until it comes back."""

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from yarl import URL

from infra.outbound.names import zone_of

MAX_COOKIES = 50
"""Cookies of a chain; each at most 4 KiB, the sizes of RFC 6265 §6.1."""

MAX_COOKIE_BYTES = 4096

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class _Cookie:
    pair: str  # name=value, exactly as it was set
    domain: str
    subdomains: bool
    path: str
    secure: bool

    def is_for(self, url: URL) -> bool:
        host = _host(url)
        return (
            (host == self.domain or (self.subdomains and host.endswith("." + self.domain)))
            and (url.raw_path + "/").startswith(self.path.removesuffix("/") + "/")
            and (url.scheme == "https" or not self.secure)
        )


@dataclass
class ChainCookies:
    """The cookies that the redirects of one chain have set."""

    _cookies: dict[tuple[str, str, str], _Cookie] = field(default_factory=dict)

    def store(self, line: str, url: URL) -> None:
        """Take the value of a Set-Cookie header of this URL's response; one that is not acceptable is ignored."""
        pair, *parts = (part.strip() for part in line.split(";"))
        attributes = {name.strip().lower(): value.strip() for name, _, value in (part.partition("=") for part in parts)}
        host = _host(url)
        domain = attributes.get("domain", "").lower().removeprefix(".")
        within = host == domain or (host.endswith("." + domain) and len(domain) >= len(zone_of(host)))
        if not pair or len(line) > MAX_COOKIE_BYTES or _CONTROL.search(pair) or (domain and not within):
            return
        path = attributes.get("path", "")
        if not path.startswith("/"):
            path = url.raw_path.rpartition("/")[0] or "/"
        key = (pair.partition("=")[0], domain or host, path)
        self._cookies.pop(key, None)
        if not _is_over(attributes) and len(self._cookies) < MAX_COOKIES:
            self._cookies[key] = _Cookie(pair, domain or host, bool(domain), path, "secure" in attributes)

    def header(self, url: URL) -> str:
        """Value of the Cookie header of a request for this URL; empty: none."""
        return "; ".join(cookie.pair for cookie in self._cookies.values() if cookie.is_for(url))


def _host(url: URL) -> str:
    return (url.raw_host or "").removesuffix(".")


def _is_over(attributes: dict[str, str]) -> bool:
    """Whether a cookie only deletes an earlier one; a chain is too short for any other age to matter."""
    if re.fullmatch(r"-?[0-9]+", age := attributes.get("max-age", "")):
        return age.startswith("-") or not age.strip("0")
    try:
        expires = parsedate_to_datetime(attributes.get("expires", ""))
    except (ValueError, OverflowError):
        return False
    return (expires if expires.tzinfo else expires.replace(tzinfo=UTC)) <= datetime.now(UTC)
