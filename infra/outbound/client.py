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
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from importlib.metadata import version
from ipaddress import ip_address
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from infra.outbound.addresses import DECIMAL, AllowList
from infra.outbound.inflate import inflater_of
from infra.outbound.reasons import ForbiddenUrl, OutboundError, Reason, http_reason
from infra.outbound.urls import check_url, join_url

USER_AGENT = f"shrinkstream/{version('shrinkstream')}"

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


def parse_retry_after(value: str, now: datetime) -> float | None:
    """Seconds to wait, at most a day, from either form of RFC 9110 §10.2.3; None if malformed."""
    value = value.strip()
    if DECIMAL.fullmatch(value):
        # A header may have more digits than int() accepts.
        return min(float(value), MAX_RETRY_AFTER)
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):  # the latter for years and zones of many digits
        return None
    if moment.tzinfo is None:  # asctime form: GMT by definition (RFC 9110 §5.6.7)
        moment = moment.replace(tzinfo=UTC)
    return min(max((moment - now).total_seconds(), 0.0), MAX_RETRY_AFTER)


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
                return check_url(join_url(target, location), self.allow)
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
    inflater = inflater_of(response.headers, host)
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
