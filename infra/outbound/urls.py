"""URLs as browsers read them, checked before anything is looked up."""

import re
from ipaddress import IPv6Address
from urllib.parse import quote, urljoin

from yarl import URL

from infra.outbound.addresses import Address, AllowList, _parse_host, is_public
from infra.outbound.reasons import ForbiddenUrl, Reason

# The sitemap protocol's limit for a URL (sitemaps.org/protocol.html); old browsers stopped at 2,083.
MAX_URL_LENGTH = 2048

# RFC 3986 appendix B, for URLs that have an authority.
_URL = re.compile(r"([^:/?#]+)://([^/?#]*)([^?#]*)(?:\?([^#]*))?(?:#.*)?", re.DOTALL)

_AUTHORITY = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]+)(?::([0-9]{0,5}))?")

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

# A segment of one or two dots, also percent-encoded (url.spec.whatwg.org, "single-dot URL path segment").
_DOTS = re.compile(r"(?:\.|%2e){1,2}", re.IGNORECASE)

# Browsers ignore more slashes than the two before a host.
_LEADING_SLASHES = re.compile(r"^//+")

_STRAY_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def _percent_encode(text: str, safe: str) -> str:
    """Percent-encode characters that RFC 3986 does not allow; existing escapes stay unchanged.

    yarl's own quoting would decode some, and the URL may have a signature over its exact text.
    """
    # surrogateescape: a Location header may contain bytes that are not UTF-8
    octets = text.encode("utf-8", "surrogateescape")
    return quote(_STRAY_PERCENT.sub(b"%25", octets), safe=safe + "%:@!$&'()*+,;=")


def _without_dots(path: str) -> str:
    """Resolve the segments ``.`` and ``..`` of an absolute path (RFC 3986 §5.2.4)."""
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if not _DOTS.fullmatch(segment):
            kept.append(segment)
        elif kept and segment.lower().replace("%2e", ".") == "..":
            kept.pop()
    if _DOTS.fullmatch(segments[-1]):
        kept.append("")
    return "/" + "/".join(kept)


def _without_backslashes(url: str) -> str:
    """Browsers read a backslash before the query as a slash."""
    end = min((at for mark in "?#" if (at := url.find(mark)) >= 0), default=len(url))
    return url[:end].replace("\\", "/") + url[end:]


def check_url(url: str, allow: AllowList) -> URL:
    """The percent-encoded URL to request for a user's ``url``, which events and CSVs keep as it is.

    Needs no DNS: resolved addresses are checked at the connection. Raises ForbiddenUrl.
    """
    url = url.strip()
    if len(url) > MAX_URL_LENGTH:
        raise ForbiddenUrl(Reason.BAD_URL, f"the URL is longer than {MAX_URL_LENGTH} characters")
    if _CONTROL.search(url):
        raise ForbiddenUrl(Reason.BAD_URL, "the URL has a control character")
    match = _URL.fullmatch(_without_backslashes(url))
    if match is None:
        raise ForbiddenUrl(Reason.BAD_URL, "the URL does not begin with http:// or https://")
    scheme, authority, path, query = match.groups()
    scheme = scheme.lower()
    if scheme not in ("http", "https"):
        raise ForbiddenUrl(Reason.FORBIDDEN_SCHEME, "the URL is neither http nor https")
    if not authority:
        raise ForbiddenUrl(Reason.BAD_URL, "the URL has no host")
    if "@" in authority:
        raise ForbiddenUrl(Reason.BAD_URL, "the URL has a user name or password")
    try:
        host, port = _parse_authority(authority, 443 if scheme == "https" else 80)
        encoded_path = _percent_encode(_without_dots(path or "/"), safe="/")
        encoded_query = _percent_encode(query or "", safe="/?")
    except ValueError:
        raise ForbiddenUrl(Reason.BAD_URL, "the URL has a malformed host, port or character") from None

    if isinstance(host, str):
        if not allow.may_permit_port(port) and not allow.has_name(host, port):
            raise ForbiddenUrl(Reason.FORBIDDEN_PORT, f"port {port} is neither 80 nor 443")
        raw_host = host
    else:
        if not allow.permits(host, port):
            if is_public(host):
                raise ForbiddenUrl(Reason.FORBIDDEN_PORT, f"port {port} is neither 80 nor 443")
            raise ForbiddenUrl(Reason.FORBIDDEN_ADDRESS, f"{host} is not a public address")
        raw_host = f"[{host}]" if isinstance(host, IPv6Address) else str(host)
    return URL.build(
        scheme=scheme, host=raw_host, port=port, path=encoded_path, query_string=encoded_query, encoded=True
    )


def _parse_authority(authority: str, default_port: int) -> tuple[str | Address, int]:
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        raise ValueError("malformed")
    port = int(match[2] or default_port)
    if not 0 < port < 65536:
        raise ValueError("the port is out of range")
    return _parse_host(match[1]), port


def join_url(base: URL, location: str) -> str:
    try:
        return urljoin(str(base), _LEADING_SLASHES.sub("//", _without_backslashes(location.strip())))
    except ValueError:
        raise ForbiddenUrl(Reason.BAD_URL, f"{base.raw_host} redirects to a malformed URL") from None
