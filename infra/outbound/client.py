"""HTTP client with SSRF protection, used for every request to a URL of a user.

A URL in a CSV or a webhook address can be an attempt at server-side request forgery (OWASP): to make this machine call
hosts of its private network. Three guards prevent it, each where it can't be bypassed:

* `check_url` checks the text: scheme, credentials, port, and IP addresses in any notation. It needs no
  DNS, so an upload can be refused with it, and it runs before each redirect is followed.
* The socket factory checks the address just before the connection. It sees literals and DNS answers
  alike, after the last look-up, so DNS rebinding fails.
* `OutboundClient` bounds the response: time, bytes on the wire, bytes after decompression, redirects.

A name with several addresses, some of them forbidden, is fetched from the others: no packet goes to a
forbidden one, and names with stray private records (split DNS, NAT64) keep working.
"""

import asyncio
import contextlib
import io
import re
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from functools import partial
from importlib.metadata import version
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from types import TracebackType
from typing import Self
from urllib.parse import quote, urljoin

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

USER_AGENT = f"shrinkstream/{version('shrinkstream')}"

# The sitemap protocol's limit for a URL (sitemaps.org/protocol.html); old browsers stopped at 2,083.
MAX_URL_LENGTH = 2048
DEFAULT_PORTS = frozenset({80, 443})

MAX_REDIRECTS = 5
REDIRECTS = frozenset({301, 302, 303, 307, 308})
# 408: RFC 9110 §15.5.9 allows a retry; the others are transient states of a server.
RETRYABLE_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
MAX_RETRY_AFTER = 24 * 3600.0

CONNECT_TIMEOUT = 10.0
# Read timeout within a download. Shorter than the total deadline, so that a retry is still possible.
STALL_TIMEOUT = 15.0

# Per connection: a larger buffer fills up, and pauses its socket, less often.
READ_BUFFER = 256 * 1024

MAX_ANSWER_BYTES = 64 * 1024
MAX_ANSWER_SECONDS = 2.0

# aiohttp tries n addresses in about n²/2 attempts, and one DNS answer holds thousands.
MAX_ADDRESSES = 8
RESOLVER_THREADS = 16

Admit = Callable[[int], Awaitable[None]]
Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# IANA IPv4 Special-Purpose Address Registry (RFC 6890 and its updates), multicast, and cloud metadata services.
FORBIDDEN_IPV4 = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this network; 0.0.0.0 connects to loopback
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared (carrier-grade NAT); 100.100.100.200 is a cloud's metadata
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # a cloud's metadata service in a public range
        "169.254.0.0/16",  # link-local; 169.254.169.254 is most clouds' metadata
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays, deprecated
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
# Only global unicast (RFC 4291 §2.4) is public. That leaves out ::, ::1, IPv4-compatible, IPv4-mapped,
# NAT64 (64:ff9b::/96, 64:ff9b:1::/48), unique-local (fd00:ec2::254 is a cloud's metadata), link-local.
GLOBAL_IPV6 = IPv6Network("2000::/3")
# IANA IPv6 Special-Purpose Address Registry, the part inside global unicast.
FORBIDDEN_IPV6 = tuple(
    IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments: Teredo (holds an IPv4 address), benchmarking, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4 (holds an IPv4 address)
        "3fff::/20",  # documentation
    )
)


class Reason(StrEnum):
    """Reason code of a failed request. Stable, since events contain it; `http_reason` adds ``fetch_http_<status>``."""

    BAD_URL = "fetch_bad_url"
    FORBIDDEN_SCHEME = "fetch_forbidden_scheme"
    FORBIDDEN_PORT = "fetch_forbidden_port"
    FORBIDDEN_ADDRESS = "fetch_forbidden_address"
    DNS_FAILED = "fetch_dns_failed"
    CONNECT_FAILED = "fetch_connect_failed"
    TLS_FAILED = "fetch_tls_failed"
    TIMEOUT = "fetch_timeout"
    TOO_MANY_REDIRECTS = "fetch_too_many_redirects"
    INCOMPLETE = "fetch_incomplete"
    BAD_ENCODING = "fetch_bad_encoding"
    BAD_RESPONSE = "fetch_bad_response"
    TOO_LARGE = "too_large"


def http_reason(status: int) -> str:
    """Reason code of a response without a success status."""
    return f"fetch_http_{status}"


class OutboundError(Exception):
    """No usable response.

    ``reason`` is a stable code; ``detail`` explains it to people and contains no credentials, query strings
    or resolved addresses; ``retryable`` says whether the same request may succeed later; ``retry_after`` is
    the server's Retry-After in seconds.
    """

    def __init__(self, reason: str, detail: str, *, retryable: bool = False, retry_after: float | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = str(reason)
        self.detail = detail
        self.retryable = retryable
        self.retry_after = retry_after


class ForbiddenUrl(OutboundError):
    """The URL, or the address that its host resolves to, must not be requested. Permanent."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public internet.

    Addresses that embed an IPv4 address (mapped, compatible, 6to4, NAT64, Teredo) are never public:
    the embedded address decides where the packet goes. A site's own NAT64 prefix can't be known here.
    """
    if isinstance(address, IPv4Address):
        return not any(address in network for network in FORBIDDEN_IPV4)
    return address in GLOBAL_IPV6 and not any(address in network for network in FORBIDDEN_IPV6)


_DECIMAL = re.compile(r"[0-9]+")
_OCTAL = re.compile(r"0[0-7]+")
_HEX = re.compile(r"0x[0-9a-f]*")
_LABEL = re.compile(r"[a-z0-9_-]{1,63}")


def _ipv4_number(text: str) -> int:
    if _HEX.fullmatch(text):
        return int(text[2:] or "0", 16)
    if _OCTAL.fullmatch(text):
        return int(text, 8)
    if _DECIMAL.fullmatch(text) and (text == "0" or text[0] != "0"):
        return int(text)
    raise ValueError(text)


def _parse_ipv4(labels: Sequence[str]) -> IPv4Address:
    """The address behind ``127.0.0.1``, ``127.1``, ``0x7f.1``, ``0177.0.0.1`` or ``2130706433``.

    The rules are those of the URL Standard (url.spec.whatwg.org, "IPv4 parser"), which also are inet_aton's.
    """
    if len(labels) > 4:
        raise ValueError("more than four parts")
    *leading, last = map(_ipv4_number, labels)
    if any(number > 255 for number in leading) or last >= 256 ** (4 - len(leading)):
        raise ValueError("a part is out of range")
    return IPv4Address(last + sum(number << 8 * (3 - index) for index, number in enumerate(leading)))


def _parse_host(text: str) -> str | Address:
    """The host of a URL: an address, or a name in lower case and IDNA form. Raises ValueError."""
    if text.startswith("["):
        if "%" in text:
            raise ValueError("a zone in an address")  # RFC 6874 zones are local to a machine
        return IPv6Address(text[1:-1])
    name = text.lower() if text.isascii() else URL.build(scheme="http", host=text).raw_host or ""
    if len(name) > 254:
        raise ValueError("longer than a DNS name")
    labels = name.removesuffix(".").split(".")
    if _DECIMAL.fullmatch(labels[-1]) or _HEX.fullmatch(labels[-1]):
        return _parse_ipv4(labels)
    if not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError("not a host name")
    return name


@dataclass(frozen=True)
class _Allowed:
    """One entry of FETCH_ALLOW: a network or a host name, on one port or (None) on all."""

    what: Network | str
    port: int | None

    def has_port(self, port: int) -> bool:
        return self.port is None or self.port == port


@dataclass(frozen=True)
class AllowList:
    """Allow list of private addresses and of ports other than 80 and 443 (the setting FETCH_ALLOW).

    A network entry (IP or CIDR) allows its addresses for every URL. A name entry allows exactly that
    name, whatever it resolves to: its owner is trusted. Neither allows any other name or address.
    """

    entries: tuple[_Allowed, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read comma-separated ``host``, IP or CIDR, each with an optional ``:port``.

        IPv6 with a port is in brackets: ``[::1]:8080``, ``[fd00::/8]:8080``. Raises ValueError,
        whose message names the malformed entry.
        """
        entries = []
        for entry in filter(None, map(str.strip, text.split(","))):
            try:
                entries.append(_parse_allowed(entry))
            except ValueError as error:
                raise ValueError(f"FETCH_ALLOW entry {entry!r}: {error}") from None
        return cls(tuple(entries))

    def has_name(self, name: str, port: int) -> bool:
        """Whether this host name is trusted on this port, whatever it resolves to."""
        name = name.removesuffix(".")
        return any(entry.what == name and entry.has_port(port) for entry in self.entries)

    def permits(self, address: Address, port: int) -> bool:
        """Whether a connection to this address may be made for any URL."""
        if port in DEFAULT_PORTS and is_public(address):
            return True
        return any(
            not isinstance(entry.what, str) and address in entry.what and entry.has_port(port) for entry in self.entries
        )

    def may_permit_port(self, port: int) -> bool:
        """Whether any address is permitted on this port: all that can be checked of a name before DNS."""
        return port in DEFAULT_PORTS or any(
            not isinstance(entry.what, str) and entry.has_port(port) for entry in self.entries
        )


_ALLOWED = re.compile(r"(?:\[(?P<six>[^\[\]]*)\]|(?P<host>[^\[\]:]*))(?::(?P<port>[0-9]{1,5}))?")


def _parse_allowed(entry: str) -> _Allowed:
    if entry.count(":") > 1 and "[" not in entry:
        return _Allowed(IPv6Network(entry), None)
    match = _ALLOWED.fullmatch(entry)
    if match is None:
        raise ValueError("neither a host, an IP nor a CIDR, with or without :port")
    port = None if match["port"] is None else int(match["port"])
    if port is not None and not 0 < port < 65536:
        raise ValueError("the port is out of range")
    if match["six"] is not None:
        return _Allowed(IPv6Network(match["six"]), port)
    if "/" in match["host"] or match["host"].replace(".", "").isdecimal():
        return _Allowed(IPv4Network(match["host"]), port)
    host = _parse_host(match["host"])
    if isinstance(host, str):
        return _Allowed(host.removesuffix("."), port)
    raise ValueError("write the address in its usual form")


# RFC 3986 appendix B, for URLs that have an authority.
_URL = re.compile(r"([^:/?#]+)://([^/?#]*)([^?#]*)(?:\?([^#]*))?(?:#.*)?", re.DOTALL)
_AUTHORITY = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]+)(?::([0-9]{0,5}))?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_STRAY_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def _percent_encode(text: str, safe: str) -> str:
    """Percent-encode characters that RFC 3986 does not allow; existing escapes stay unchanged.

    yarl's own quoting would decode some, and the URL may have a signature over its exact text.
    """
    # surrogateescape: a Location header may contain bytes that are not UTF-8
    octets = text.encode("utf-8", "surrogateescape")
    return quote(_STRAY_PERCENT.sub(b"%25", octets), safe=safe + "%:@!$&'()*+,;=")


def check_url(url: str, allow: AllowList) -> URL:
    """The percent-encoded URL to request for a user's ``url``, which events and CSVs keep as it is.

    Needs no DNS: resolved addresses are checked at the connection. Raises ForbiddenUrl.
    """
    url = url.strip()
    if len(url) > MAX_URL_LENGTH:
        raise ForbiddenUrl(Reason.BAD_URL, f"the URL is longer than {MAX_URL_LENGTH} characters")
    if _CONTROL.search(url):
        raise ForbiddenUrl(Reason.BAD_URL, "the URL has a control character")
    match = _URL.fullmatch(url)
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
        encoded_path = _percent_encode(path or "/", safe="/")
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


def parse_retry_after(value: str, now: datetime) -> float | None:
    """Seconds to wait, at most a day, from either form of RFC 9110 §10.2.3; None if malformed."""
    value = value.strip()
    if _DECIMAL.fullmatch(value):
        # A header may have more digits than int() accepts.
        return min(float(value), MAX_RETRY_AFTER)
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):  # the latter for years and zones of many digits
        return None
    if moment.tzinfo is None:  # asctime form: GMT by definition (RFC 9110 §5.6.7)
        moment = moment.replace(tzinfo=UTC)
    return min(max((moment - now).total_seconds(), 0.0), MAX_RETRY_AFTER)


class Inflater:
    """Incremental decoder of ``Content-Encoding: gzip`` or ``deflate``, bounded against decompression bombs."""

    STEP = 64 * 1024

    def __init__(self, encoding: str) -> None:
        self._gzip = encoding != "deflate"
        self._stream: zlib._Decompress | None = None
        self._one_ended = False

    @property
    def complete(self) -> bool:
        """Whether the data so far ends at the end of a compressed stream."""
        return self._stream is None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Decompressed pieces of at most STEP bytes each, lazily. Raises zlib.error."""
        more = False  # zlib has output left after the last byte of input
        while data or more:
            if self._stream is None:
                # RFC 1952 §2.2: gzip members may follow one another. Other trailing bytes are ignored.
                if self._one_ended and not (self._gzip and data[0] == 0x1F):
                    return
                self._stream = zlib.decompressobj(self._window_bits(data))
            piece = self._stream.decompress(data, self.STEP)
            if self._stream.eof:
                data, more = self._stream.unused_data, False
                self._stream, self._one_ended = None, True
            else:
                data, more = self._stream.unconsumed_tail, len(piece) == self.STEP
            yield piece

    def _window_bits(self, data: bytes) -> int:
        if self._gzip:
            return 16 + zlib.MAX_WBITS
        # "deflate" means zlib (RFC 9110 §8.4.1.2), but some servers send it without the zlib header.
        return zlib.MAX_WBITS if data[0] & 0x0F == 8 else -zlib.MAX_WBITS


class SystemResolver(AbstractResolver):
    """getaddrinfo in a thread pool of its own: slow names must not block the default executor."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(RESOLVER_THREADS, thread_name_prefix="dns")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        look_up = partial(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        found = await asyncio.get_running_loop().run_in_executor(self._threads, look_up)
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=found_family,
                proto=proto,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for found_family, _, proto, _, address in found[:MAX_ADDRESSES]
        ]

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


@dataclass
class _Dial:
    """Context of a connection for the socket factory: whether the name is trusted, and what happened."""

    trusted: bool
    refused: bool = field(default=False, init=False)
    tried: bool = field(default=False, init=False)


# aiohttp connects in the task of the request, or in child tasks, which inherit the context. If that
# ever changes, the variable is unset in the socket factory, and no name is trusted.
_dial: ContextVar[_Dial | None] = ContextVar("dial", default=None)


@dataclass(frozen=True)
class Response:
    """A complete response; ``url`` is its source after redirects."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: URL


class OutboundClient:
    """GET and POST to URLs of users; an async context manager around one session.

    ``limit`` and ``limit_per_host`` bound the open connections; idle ones are kept for 5 seconds.
    ``resolver`` and ``tls`` replace the system's DNS and its trusted authorities.
    """

    def __init__(
        self,
        allow: AllowList,
        *,
        limit: int = 100,
        limit_per_host: int = 16,
        resolver: AbstractResolver | None = None,
        tls: ssl.SSLContext | None = None,
        dns_cache_seconds: int = 10,
        connect_timeout: float = CONNECT_TIMEOUT,
        stall_timeout: float = STALL_TIMEOUT,
    ) -> None:
        self.allow = allow
        self._limit = limit
        self._limit_per_host = limit_per_host
        self._resolver = resolver
        self._tls = tls
        self._dns_cache_seconds = dns_cache_seconds
        self._connect_timeout = connect_timeout
        self._stall_timeout = stall_timeout
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        resolver = self._resolver or SystemResolver()
        if self._resolver is None:
            self._stack.push_async_callback(resolver.close)
        connector = aiohttp.TCPConnector(
            limit=self._limit,
            limit_per_host=self._limit_per_host,
            keepalive_timeout=5,
            resolver=resolver,
            use_dns_cache=self._dns_cache_seconds > 0,
            ttl_dns_cache=self._dns_cache_seconds,
            ssl=self._tls or True,  # True: verified against the system's trusted authorities
            socket_factory=self._open_socket,
        )
        self._session = await self._stack.enter_async_context(
            aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
                read_bufsize=READ_BUFFER,
                headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
            )
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def get(self, url: str, *, max_bytes: int, timeout: float, admit: Admit | None = None) -> Response:
        """The 2xx response to a GET, after at most 5 redirects, its body decompressed.

        ``max_bytes`` bounds the body on the wire and after decompression; ``timeout`` is the total deadline in
        seconds, redirects and body included. ``admit`` applies backpressure: it is awaited with the size of each piece
        of the body before it is kept; that time does not count. Raises OutboundError, which is ForbiddenUrl if this
        URL or a redirect's is not allowed. aiohttp retries once if a connection ends before any response.
        """
        target = check_url(url, self.allow)
        async with _deadline(timeout, target) as deadline:

            async def admitted(size: int) -> None:
                if admit is not None:
                    loop = asyncio.get_running_loop()
                    remaining = (deadline.when() or 0.0) - loop.time()
                    deadline.reschedule(None)
                    await admit(size)
                    deadline.reschedule(loop.time() + remaining)

            for _ in range(MAX_REDIRECTS + 1):
                result = await self._get_once(target, max_bytes, admitted)
                if isinstance(result, Response):
                    return result
                target = result
        raise OutboundError(Reason.TOO_MANY_REDIRECTS, f"more than {MAX_REDIRECTS} redirects")

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], *, timeout: float) -> Response:
        """The response to a POST, whatever its status; no redirect is followed.

        The status must arrive within ``timeout`` seconds. The body is not decompressed, and is read
        for at most 64 KiB and 2 seconds: the status is what matters. Raises OutboundError.
        """
        target = check_url(url, self.allow)
        async with (
            _deadline(timeout, target) as deadline,
            self._exchange("POST", target, headers=headers, body=body, stall_timeout=None) as response,
        ):
            remaining = (deadline.when() or 0.0) - asyncio.get_running_loop().time()
            answer = await _read_start(response, seconds=min(MAX_ANSWER_SECONDS, remaining / 2))
            return Response(response.status, response.headers, answer, target)

    async def _get_once(self, target: URL, max_bytes: int, admitted: Admit) -> Response | URL:
        """One hop: the response, or the URL that it redirects to."""
        async with self._exchange("GET", target, stall_timeout=self._stall_timeout) as response:
            location = response.headers.get("Location")
            if response.status in REDIRECTS and location is not None:
                return check_url(_join(target, location), self.allow)
            # 206 is no success here: the request has no Range (RFC 9110 §15.3.7)
            if not 200 <= response.status < 300 or response.status == 206:
                raise _refusal(response)
            return Response(response.status, response.headers, await _read_body(response, max_bytes, admitted), target)

    @asynccontextmanager
    async def _exchange(
        self,
        method: str,
        target: URL,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        stall_timeout: float | None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request. aiohttp's errors become OutboundErrors, also while the body is read."""
        dial = _Dial(trusted=self.allow.has_name(target.raw_host or "", target.port or 0))
        before = _dial.set(dial)
        try:
            async with self._session.request(
                method,
                target,
                headers=headers,
                data=body,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout, sock_read=stall_timeout),
            ) as response:
                yield response
        except (aiohttp.ClientError, OSError) as error:
            raise _translate(error, target, dial) from None  # aiohttp's messages may quote the whole URL
        finally:
            _dial.reset(before)

    def _open_socket(self, addr_info: aiohttp.AddrInfoType) -> socket.socket:
        """Socket factory: raises PermissionError for a forbidden address."""
        family, kind, protocol, _, sockaddr = addr_info
        dial = _dial.get() or _Dial(trusted=False)
        try:
            permitted = dial.trusted or self.allow.permits(ip_address(sockaddr[0]), sockaddr[1])
        except ValueError:  # the resolver returned no IP address
            permitted = False
        if not permitted:
            dial.refused = True
            raise PermissionError("the address is forbidden")
        dial.tried = True
        return socket.socket(family, kind, protocol)


def _join(base: URL, location: str) -> str:
    try:
        return urljoin(str(base), location)
    except ValueError:
        raise ForbiddenUrl(Reason.BAD_URL, f"{base.raw_host} redirects to a malformed URL") from None


@asynccontextmanager
async def _deadline(seconds: float, target: URL) -> AsyncIterator[asyncio.Timeout]:
    try:
        async with asyncio.timeout(seconds) as deadline:
            yield deadline
    except TimeoutError:
        raise OutboundError(
            Reason.TIMEOUT,
            f"{target.raw_host} gave no complete response within {seconds:.1f} s",
            retryable=True,
        ) from None


def _refusal(response: aiohttp.ClientResponse) -> OutboundError:
    retry_after = response.headers.get("Retry-After")
    return OutboundError(
        http_reason(response.status),
        f"{response.url.raw_host} answered {response.status}",
        retryable=response.status in RETRYABLE_STATUSES,
        retry_after=None if retry_after is None else parse_retry_after(retry_after, datetime.now(UTC)),
    )


def _translate(error: Exception, target: URL, dial: _Dial) -> OutboundError:
    host = target.raw_host
    match error:
        case TimeoutError():
            return OutboundError(Reason.TIMEOUT, f"{host} sent nothing for too long", retryable=True)
        case aiohttp.ClientConnectorDNSError():
            passing = error.os_error.errno == socket.EAI_AGAIN
            return OutboundError(Reason.DNS_FAILED, f"{host} can't be resolved", retryable=passing)
        case aiohttp.ClientConnectorCertificateError():
            return OutboundError(Reason.TLS_FAILED, f"{host} has no valid certificate")
        case aiohttp.ClientSSLError():
            return OutboundError(Reason.TLS_FAILED, f"{host} does not speak TLS as it should")
        case aiohttp.ClientConnectorError() if dial.refused and not dial.tried:
            return ForbiddenUrl(Reason.FORBIDDEN_ADDRESS, f"{host} resolves to forbidden addresses only")
        case aiohttp.ClientConnectorError():
            return OutboundError(Reason.CONNECT_FAILED, f"cannot connect to {host}", retryable=True)
        case aiohttp.ClientConnectionError() | aiohttp.ClientPayloadError() | OSError():
            return OutboundError(Reason.INCOMPLETE, f"{host} closed the connection within its response", retryable=True)
        case _:
            return OutboundError(Reason.BAD_RESPONSE, f"{host} does not speak HTTP as it should")


async def _read_body(response: aiohttp.ClientResponse, max_bytes: int, admitted: Admit) -> bytes:
    """The complete body, decompressed. Raises OutboundError as soon as it exceeds ``max_bytes``."""
    host = response.url.raw_host
    too_large = OutboundError(Reason.TOO_LARGE, f"{host} sends more than {max_bytes} bytes")
    if (response.content_length or 0) > max_bytes:
        raise too_large
    inflater = _inflater(response.headers, host)
    body = io.BytesIO()  # getvalue() shares its buffer; a bytearray would be copied
    received = 0
    try:
        async for chunk in response.content.iter_any():
            received += len(chunk)
            if received > max_bytes:
                raise too_large
            if inflater is None:
                await admitted(len(chunk))
                body.write(chunk)
                continue
            for piece in inflater.feed(chunk):
                if body.tell() + len(piece) > max_bytes:
                    raise too_large
                await admitted(len(piece))
                body.write(piece)
                await asyncio.sleep(0)  # a small chunk may inflate a thousandfold: yield to the event loop
    except zlib.error:
        raise OutboundError(Reason.BAD_ENCODING, f"{host} sends a damaged compressed body") from None
    if inflater is not None and not inflater.complete:
        raise OutboundError(Reason.INCOMPLETE, f"{host} sent an incomplete compressed body", retryable=True)
    return body.getvalue()


def _inflater(headers: CIMultiDictProxy[str] | CIMultiDict[str], host: str | None) -> Inflater | None:
    """Decoder of the Content-Encoding. Our requests accept none, but some servers compress all the same."""
    encodings = [
        encoding
        for line in headers.getall("Content-Encoding", ())
        for part in line.split(",")
        if (encoding := part.strip().lower()) not in ("", "identity")
    ]
    if not encodings:
        return None
    if encodings in (["gzip"], ["x-gzip"], ["deflate"]):
        return Inflater(encodings[0])
    raise OutboundError(Reason.BAD_ENCODING, f"{host} sends an unsupported Content-Encoding")


async def _read_start(response: aiohttp.ClientResponse, seconds: float) -> bytes:
    """The start of an informational body; a longer one closes the connection."""
    kept = bytearray()
    # An error doesn't matter: the status is known.
    with contextlib.suppress(aiohttp.ClientError, OSError):
        async with asyncio.timeout(seconds):
            async for chunk in response.content.iter_any():
                kept += chunk[: MAX_ANSWER_BYTES - len(kept)]
                if len(kept) == MAX_ANSWER_BYTES:
                    break
    response.close()
    return bytes(kept)
