"""HTTP client with SSRF protection, used for every request to a URL of a user.

A URL in a CSV or a webhook address can be an attempt at server-side request forgery (OWASP): to make this machine call
hosts of its private network. Three guards prevent it, each where it can't be bypassed:

* `check_url` checks the text: scheme, credentials, port, and IP addresses in any notation. It needs no
  DNS, so an upload can be refused with it, and it runs before each redirect is followed.
* `Connections` checks the address that it connects to. It sees literals and DNS answers alike, after the last
  look-up, so DNS rebinding fails.
* `OutboundClient` bounds the response: time, bytes on the wire, bytes after decompression, redirects.

A name with several addresses, some of them forbidden, is fetched from the others: no packet goes to a
forbidden one, and names with stray private records (split DNS, NAT64) keep working.

It reads responses as leniently as browsers do (`http1`), which is why it isn't aiohttp's client.
"""

import asyncio
import io
import re
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache, partial
from importlib.metadata import version
from types import TracebackType
from typing import Self

from multidict import CIMultiDict
from yarl import URL

from infra.outbound.addresses import DECIMAL, AllowList
from infra.outbound.budget import TimeBudget
from infra.outbound.connections import Connection, Connections
from infra.outbound.cookies import ChainCookies
from infra.outbound.http1 import IncompleteResponse, MalformedResponse, ResponseParser
from infra.outbound.inflate import inflater_of
from infra.outbound.names import LookUp, Names, system_look_up
from infra.outbound.reasons import OutboundError, Reason, http_reason
from infra.outbound.request_headers import RequestHeaders
from infra.outbound.urls import check_url, join_url

USER_AGENT = f"shrinkstream/{version('shrinkstream')}"

MAX_REDIRECTS = 20
"""As the Fetch Standard has it (fetch.spec.whatwg.org, "HTTP-redirect fetch")."""

REDIRECTS = frozenset({301, 302, 303, 307, 308})

# 408: RFC 9110 §15.5.9 allows a retry; the others are transient states of a server.
RETRYABLE_STATUSES = frozenset({408, 429, 500, 502, 503, 504})

MAX_RETRY_AFTER = 24 * 3600.0

CONNECT_TIMEOUT = 10.0

# Read timeout within a download. Shorter than the total deadline, so that a retry is still possible.
STALL_TIMEOUT = 15.0

MAX_CHECKED_URLS = 512
"""Checked URLs that a client caches: the same one is checked at an image's admission and before its download."""

MAX_ANSWER_BYTES = 64 * 1024

MAX_ANSWER_SECONDS = 2.0

_WHOLE_RANGE = re.compile(r"bytes\s+0-([0-9]{1,18})/([0-9]{1,18})", re.IGNORECASE)

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


@dataclass(frozen=True)
class Response:
    """A complete response; ``url`` is its source after redirects."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: URL


class OutboundClient:
    """GET and POST to URLs of users; an async context manager around one pool of connections.

    ``limit_per_host`` bounds the open connections; idle ones are kept for 5 seconds. ``headers`` are the setting
    FETCH_HEADERS. ``look_up`` and ``tls`` replace the system's DNS and its trusted authorities.
    """

    def __init__(
        self,
        allow: AllowList,
        *,
        limit_per_host: int = 16,
        headers: RequestHeaders | None = None,
        look_up: LookUp = system_look_up,
        tls: ssl.SSLContext | None = None,
        dns_cache_seconds: float = 10.0,
        connect_timeout: float = CONNECT_TIMEOUT,
        stall_timeout: float = STALL_TIMEOUT,
    ) -> None:
        self.check_url = lru_cache(MAX_CHECKED_URLS)(partial(check_url, allow=allow))
        self._headers = headers or RequestHeaders()
        self._stall_timeout = stall_timeout
        self._connections = Connections(
            allow,
            Names(look_up, dns_cache_seconds),
            limit_per_host=limit_per_host,
            tls=tls or ssl.create_default_context(),
            connect_timeout=connect_timeout,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connections.close()

    async def get(
        self, url: str, *, max_bytes: int, budget: TimeBudget, owner: str = "", admit: Admit | None = None
    ) -> Response:
        """The 2xx response to a GET, after at most 20 redirects, its body decompressed.

        ``max_bytes`` bounds the body on the wire and after decompression; ``budget`` the time, redirects and body
        included. ``owner`` is on whose behalf names are looked up. ``admit`` applies backpressure: it is awaited with
        the size of each piece of the body before it is kept; that time does not count. Cookies live as long as the
        chain of redirects. Raises OutboundError, which is ForbiddenUrl if this URL or a redirect's is not allowed.
        """
        target = self.check_url(url)
        cookies = ChainCookies()

        async def admitted(size: int) -> None:
            if admit is not None:
                with budget.paused(bounded=False):
                    await admit(size)

        async with _enforced(budget, target):
            for _ in range(MAX_REDIRECTS + 1):
                headers = {"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": "identity"}
                headers |= self._headers.of(target)
                if cookie := cookies.header(target):
                    headers["Cookie"] = cookie
                request = _request("GET", target, headers)
                async with self._exchange(request, target, owner, budget, self._stall_timeout) as answer:
                    while not answer.parser.headers_complete:
                        await answer.receive()
                    location = _location(answer)
                    if location is None:
                        body = await _read_body(answer, max_bytes, admitted)
                        return Response(answer.status, answer.headers, body, target)
                    for line in answer.headers.getall("Set-Cookie", ()):
                        cookies.store(line, target)
                    target = self.check_url(join_url(target, location))
        raise OutboundError(Reason.TOO_MANY_REDIRECTS, f"more than {MAX_REDIRECTS} redirects")

    async def post(
        self, url: str, body: bytes, headers: Mapping[str, str], *, timeout: float, owner: str = ""
    ) -> Response:
        """The response to a POST, whatever its status; no redirect is followed.

        The status line must arrive within ``timeout`` seconds; it is what matters. The rest is read for at most 2
        seconds, 64 KiB of the body, not decompressed, and nothing in it is an error. Raises OutboundError.
        """
        target = self.check_url(url)
        budget = TimeBudget(timeout)
        sent = {"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": "identity", **headers}
        request = _request("POST", target, {**sent, "Content-Length": str(len(body))}) + body
        async with _enforced(budget, target), self._exchange(request, target, owner, budget, None) as answer:
            kept = bytearray()
            try:
                while answer.parser.status is None:
                    await answer.receive()
                kept += answer.begun
                async with asyncio.timeout(min(MAX_ANSWER_SECONDS, budget.remaining / 2)):
                    while not answer.parser.complete and len(kept) < MAX_ANSWER_BYTES:
                        kept += await answer.receive()
            except (OutboundError, TimeoutError):
                if answer.parser.status is None:
                    raise
            return Response(answer.status, answer.headers, bytes(kept[:MAX_ANSWER_BYTES]), target)

    @asynccontextmanager
    async def _exchange(
        self, request: bytes, target: URL, owner: str, budget: TimeBudget, stall_timeout: float | None
    ) -> AsyncIterator["_Answer"]:
        """Send a request; the block receives its response.

        A kept connection may have been closed by the server meanwhile: the request is then sent over a new one.
        """
        async with self._connections.slot(target, budget):
            connection = await self._connections.open(target, owner, budget, fresh=False)
            answer = _Answer(connection, target, stall_timeout)
            try:
                connection.transport.write(request)
                if connection.was_used and not await answer.begins():
                    connection.transport.abort()
                    connection = await self._connections.open(target, owner, budget, fresh=True)
                    answer = _Answer(connection, target, stall_timeout)
                    connection.transport.write(request)
                yield answer
            finally:
                if answer.parser.is_reusable and connection.is_idle:
                    self._connections.keep(target, connection)
                else:
                    connection.transport.abort()


class _Answer:
    """The response that arrives over a connection. Its errors are OutboundErrors."""

    def __init__(self, connection: Connection, target: URL, stall_timeout: float | None) -> None:
        self.parser = ResponseParser()
        self.host = target.raw_host
        self.begun = b""
        """The part of the body that came with the end of the head."""
        self._connection = connection
        self._stall_timeout = stall_timeout
        self._first: bytes | None = None

    @property
    def status(self) -> int:
        return self.parser.status or 0

    @property
    def headers(self) -> CIMultiDict[str]:
        return self.parser.headers

    async def begins(self) -> bool:
        """Whether anything arrives before the connection is closed."""
        try:
            self._first = await self._read()
        except OSError:
            self._first = b""
        return bool(self._first)

    async def receive(self) -> bytes:
        """Receive some more; returns the part of the body in it."""
        before = self.parser.headers_complete
        try:
            data, self._first = self._first, None
            if data is None:
                data = await self._read()
            if data:
                body = self.parser.feed(data)
            else:
                self.parser.feed_eof()
                body = b""
        except (OSError, IncompleteResponse):
            raise OutboundError(
                Reason.INCOMPLETE, f"{self.host} closed the connection within its response", retryable=True
            ) from None
        except MalformedResponse as error:
            raise OutboundError(Reason.BAD_RESPONSE, f"{self.host} does not speak HTTP as it should: {error}") from None
        if not before:
            self.begun = body
        return body

    async def _read(self) -> bytes:
        try:
            async with asyncio.timeout(self._stall_timeout):
                return await self._connection.read()
        except TimeoutError:
            raise OutboundError(Reason.TIMEOUT, f"{self.host} sent nothing for too long", retryable=True) from None


def _request(method: str, target: URL, headers: Mapping[str, str]) -> bytes:
    lines = [f"{method} {target.raw_path_qs} HTTP/1.1", f"Host: {target.host_port_subcomponent}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")


@asynccontextmanager
async def _enforced(budget: TimeBudget, target: URL) -> AsyncIterator[None]:
    try:
        async with budget.enforced():
            yield
    except TimeoutError:
        raise OutboundError(
            Reason.TIMEOUT,
            f"{target.raw_host} gave no complete response within {budget.spent:.1f} s",
            retryable=True,
        ) from None


def _location(answer: _Answer) -> str | None:
    """The target of a redirect; None if the response has the requested body. Raises OutboundError otherwise."""
    if answer.status in REDIRECTS:
        locations = list(dict.fromkeys(filter(None, answer.headers.getall("Location", ()))))
        if len(locations) > 1:
            raise OutboundError(Reason.BAD_RESPONSE, f"{answer.host} redirects to different URLs")
        if locations:
            return locations[0]
        if answer.headers.get("Content-Type", "").lower().startswith("image/"):
            return None  # browsers show it
    if not 200 <= answer.status < 300 or (answer.status == 206 and not _is_whole(answer.headers)):
        raise _refusal(answer)
    return None


def _is_whole(headers: CIMultiDict[str]) -> bool:
    """Whether a 206 has the whole resource: our requests have no Range, but some servers answer so nevertheless."""
    match = _WHOLE_RANGE.fullmatch(headers.get("Content-Range", "").strip())
    return match is not None and int(match[1]) + 1 == int(match[2])


def _refusal(answer: _Answer) -> OutboundError:
    retry_after = answer.headers.get("Retry-After")
    return OutboundError(
        http_reason(answer.status),
        f"{answer.host} answered {answer.status}",
        retryable=answer.status in RETRYABLE_STATUSES,
        retry_after=None if retry_after is None else parse_retry_after(retry_after, datetime.now(UTC)),
    )


async def _read_body(answer: _Answer, max_bytes: int, admitted: Admit) -> bytes:
    """The complete body, decompressed. Raises OutboundError as soon as it exceeds ``max_bytes``."""
    parser = answer.parser
    too_large = OutboundError(Reason.TOO_LARGE, f"{answer.host} sends more than {max_bytes} bytes")
    if (parser.content_length or 0) > max_bytes:
        raise too_large
    inflater = inflater_of(answer.headers, answer.host)
    body = io.BytesIO()  # getvalue() shares its buffer; a bytearray would be copied
    received = 0
    chunk = answer.begun
    try:
        while True:
            received += len(chunk)
            if received > max_bytes:
                raise too_large
            for piece in inflater.feed(chunk) if inflater else (chunk,):
                if body.tell() + len(piece) > max_bytes:
                    raise too_large
                await admitted(len(piece))
                body.write(piece)
                if inflater:
                    await asyncio.sleep(0)  # a small chunk may inflate a thousandfold: yield to the event loop
            if parser.complete:
                break
            chunk = await answer.receive()
    except zlib.error:
        raise OutboundError(Reason.BAD_ENCODING, f"{answer.host} sends a damaged compressed body") from None
    except OutboundError as error:
        # Some servers announce the size before compression; browsers accept an exact match (as Chromium's
        # URLRequestHttpJob::ShouldFixMismatchedContentLength).
        unpacked = inflater is not None and inflater.complete and body.tell() == parser.content_length
        if error.reason != Reason.INCOMPLETE or not unpacked:
            raise
    if inflater is not None and not inflater.complete:
        raise OutboundError(Reason.INCOMPLETE, f"{answer.host} sent an incomplete compressed body", retryable=True)
    return body.getvalue()
