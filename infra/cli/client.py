"""HTTP client of the API, used by the command line."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import aiohttp

from infra.errors import EXIT_REFUSED, ExplainedError

REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=900, sock_connect=10, sock_read=120)
UNREACHABLE_TIMEOUT = 60.0  # seconds of retries while the server is unreachable
UPLOAD_ATTEMPTS = 3
IN_PROGRESS_TIMEOUT = 120.0  # seconds of retries while the server still processes an upload whose response was lost
DOWNLOAD_ATTEMPTS = 3
MIN_POLL_SECONDS = 0.2  # first poll interval; doubled up to the server's Retry-After
POLL_SECONDS = 1.0  # without a Retry-After
MAX_RETRY_AFTER = 30.0  # seconds
CHUNK_BYTES = 256 * 1024
IMAGES_PER_PAGE = 1000

# Transient errors of the server, or of a proxy in front of it.
TRANSIENT_STATUSES = frozenset(
    {
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)
_STATS_MEMBERS = ("requests", "images", "failed", "inputBytes", "outputBytes", "failures", "days")
_STATUS_MEMBERS = ("requestId", "status", "total", "succeeded", "failed", "inputBytes", "outputBytes")


class ApiError(ExplainedError):
    """Error response; ``problem`` are its problem details (RFC 9457), ``retry_after`` the seconds of Retry-After."""

    def __init__(self, status: int, problem: dict[str, Any], retry_after: float | None = None) -> None:
        self.status = status
        self.problem = problem
        self.retry_after = retry_after
        self.exit_code = EXIT_REFUSED if status < HTTPStatus.INTERNAL_SERVER_ERROR else ExplainedError.exit_code
        super().__init__(str(problem.get("detail") or problem.get("title") or f"HTTP {status}"))

    @property
    def is_transient(self) -> bool:
        """Whether a retry may succeed."""
        return self.status in TRANSIENT_STATUSES


class ServerUnreachableError(ExplainedError):
    """The connection to the server failed or was closed early."""


class NotShrinkstreamError(ExplainedError):
    """The server at this address is not a shrinkstream server."""


class Client:
    """Client of one server. Use as an async context manager.

    Every method raises ApiError, ServerUnreachableError or NotShrinkstreamError.
    """

    def __init__(self, server: str, api_key: str | None = None) -> None:
        self.server = server
        self._server = server.rstrip("/")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._session = aiohttp.ClientSession(headers=headers, timeout=REQUEST_TIMEOUT)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def upload(
        self,
        file: Path,
        *,
        options: Mapping[str, str | int | None],
        idempotency_key: str,
    ) -> str:
        """Upload a CSV; returns the request's id. ``options`` are the form's fields; None: not given.

        Transient errors are retried with the same idempotency key, so that at most one request is created.
        OSError: the file can't be read.
        """
        given = {name: str(value) for name, value in options.items() if value is not None}
        loop = asyncio.get_running_loop()
        attempt, deadline = 1, loop.time() + IN_PROGRESS_TIMEOUT
        while True:
            try:
                return await self._upload(file, given, idempotency_key)
            except (ServerUnreachableError, ApiError) as error:
                if _is_in_progress(error):
                    if loop.time() > deadline:
                        raise
                elif attempt == UPLOAD_ATTEMPTS or not _is_transient(error):
                    raise
                else:
                    attempt += 1
                await asyncio.sleep(_backoff(error, attempt))

    async def _upload(self, file: Path, fields: dict[str, str], idempotency_key: str) -> str:
        form = aiohttp.FormData()
        for name, value in fields.items():
            form.add_field(name, value)
        with file.open("rb") as content:
            form.add_field("file", content, filename=file.name, content_type="text/csv")
            async with self._request(
                "POST", "/api/upload", data=form, headers={"Idempotency-Key": idempotency_key}
            ) as response:
                accepted = await self._json(response, "requestId")
        return str(accepted["requestId"])

    async def status(self, request_id: str) -> dict[str, Any]:
        """The status object of a request."""
        async with self._request("GET", f"/api/status/{request_id}") as response:
            return await self._json(response, *_STATUS_MEMBERS)

    async def follow(
        self, request_id: str, *, on_error: Callable[[ExplainedError], None] = lambda _: None
    ) -> AsyncIterator[dict[str, Any]]:
        """Poll the status; yields each change until the status is not ``processing``.

        The poll interval grows from ``MIN_POLL_SECONDS`` to the server's Retry-After. Transient errors are passed to
        ``on_error`` and retried with backoff, for ``UNREACHABLE_TIMEOUT`` seconds.
        """
        loop = asyncio.get_running_loop()
        path = f"/api/status/{request_id}"
        reached_at, failures, interval = loop.time(), 0, MIN_POLL_SECONDS / 2
        etag = ""
        while True:
            try:
                async with self._request("GET", path, headers={"If-None-Match": etag} if etag else {}) as response:
                    is_changed = response.status != HTTPStatus.NOT_MODIFIED
                    if is_changed:
                        status = await self._json(response, *_STATUS_MEMBERS)
                        etag = response.headers.get("ETag", "")
                    max_interval = _seconds(response.headers.get("Retry-After")) or POLL_SECONDS
            except (ServerUnreachableError, ApiError) as error:
                if not _is_transient(error) or loop.time() - reached_at > UNREACHABLE_TIMEOUT:
                    raise
                on_error(error)
                failures += 1
                await asyncio.sleep(_backoff(error, failures))
                continue
            if is_changed:
                yield status
                if status["status"] != "processing":
                    return
            reached_at, failures, interval = loop.time(), 0, min(interval * 2, max_interval)
            await asyncio.sleep(interval)

    async def requests(self, limit: int) -> list[dict[str, Any]]:
        """The status objects of the newest requests."""
        async with self._request("GET", f"/api/requests?limit={limit}") as response:
            items: list[dict[str, Any]] = (await self._json(response, "items"))["items"]
            return items

    async def images(self, request_id: str, status: str | None = None) -> AsyncIterator[dict[str, Any]]:
        """The images of a request, in CSV order, optionally filtered by ``status``."""
        parameters = {"limit": str(IMAGES_PER_PAGE)} | ({"status": status} if status else {})
        while True:
            async with self._request("GET", f"/api/requests/{request_id}/images", params=parameters) as response:
                page = await self._json(response, "items", "nextCursor")
            for image in page["items"]:
                yield image
            if page["nextCursor"] is None:
                return
            parameters["cursor"] = page["nextCursor"]

    async def cancel(self, request_id: str) -> dict[str, Any]:
        """Cancel a request; returns its status."""
        async with self._request("POST", f"/api/requests/{request_id}/cancel") as response:
            return await self._json(response, *_STATUS_MEMBERS)

    async def delete(self, request_id: str, *, forget: bool) -> dict[str, Any]:
        """Delete the files of a request, with ``forget`` also its product names and URLs; returns its status."""
        parameters = {"forget": "true"} if forget else {}
        async with self._request("DELETE", f"/api/requests/{request_id}", params=parameters) as response:
            return await self._json(response, *_STATUS_MEMBERS)

    async def retry(self, request_id: str, reason: str | None = None) -> None:
        """Retry the failed images of a request, or those that failed for one reason."""
        parameters = {"reason": reason} if reason is not None else {}
        async with self._request("POST", f"/api/requests/{request_id}/retry", params=parameters):
            pass

    async def failures(self, request_id: str) -> list[dict[str, Any]]:
        """The failures of a request by reason, the most frequent one first."""
        async with self._request("GET", f"/api/requests/{request_id}/failures") as response:
            reasons: list[dict[str, Any]] = (await self._json(response, "reasons"))["reasons"]
            return reasons

    async def stats(self) -> dict[str, Any]:
        """The statistics of the key's requests over the last 30 days."""
        async with self._request("GET", "/api/stats") as response:
            return await self._json(response, *_STATS_MEMBERS)

    async def download(self, request_id: str, to: BinaryIO) -> int:
        """Download the output CSV into a seekable file; returns its bytes.

        An aborted transfer is restarted, up to ``DOWNLOAD_ATTEMPTS`` attempts.
        """
        for attempt in range(1, DOWNLOAD_ATTEMPTS + 1):
            try:
                async with self._request("GET", f"/api/download/{request_id}") as response:
                    if response.content_type != "text/csv":
                        raise self._not_ours(f"sent {response.content_type} instead of a CSV")
                    to.seek(0)
                    to.truncate()
                    async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                        await asyncio.to_thread(to.write, chunk)
                    return to.tell()
            except (ServerUnreachableError, ApiError) as error:
                if attempt == DOWNLOAD_ATTEMPTS or not _is_transient(error):
                    raise
                await asyncio.sleep(_backoff(error, attempt))
        raise AssertionError("unreachable")

    @asynccontextmanager
    async def _request(self, method: str, path: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            async with self._session.request(method, self._server + path, **options) as response:
                if response.status >= HTTPStatus.BAD_REQUEST:
                    raise await self._error(response)
                yield response
        except aiohttp.InvalidURL:
            raise NotShrinkstreamError(f"{self._server} is not the address of a server") from None
        except (aiohttp.ClientError, TimeoutError) as error:
            cause = (str(error) or "time-out").splitlines()[0]
            raise ServerUnreachableError(f"no answer from {self._server}: {cause}") from None

    async def _error(self, response: aiohttp.ClientResponse) -> ExplainedError:
        status, retry_after = response.status, _seconds(response.headers.get("Retry-After"))
        problem = _parsed(await response.read())
        if response.content_type == "application/problem+json" and isinstance(problem, dict):
            return ApiError(status, problem, retry_after)
        if status in TRANSIENT_STATUSES:  # from a proxy
            return ApiError(status, {"detail": f"{self._server} answered {status} {response.reason}"}, retry_after)
        return self._not_ours(f"answered {status} {response.reason}")

    async def _json(self, response: aiohttp.ClientResponse, *members: str) -> dict[str, Any]:
        """The JSON object of a response, which must have these members."""
        body = _parsed(await response.read())
        if not isinstance(body, dict) or not set(members) <= body.keys():
            raise self._not_ours("sent an unexpected response body")
        return body

    def _not_ours(self, reason: str) -> NotShrinkstreamError:
        return NotShrinkstreamError(f"{self._server} is not a shrinkstream server: it {reason}")


def _is_transient(error: ExplainedError) -> bool:
    return not isinstance(error, ApiError) or error.is_transient


def _is_in_progress(error: ExplainedError) -> bool:
    return isinstance(error, ApiError) and str(error.problem.get("type")).endswith(":upload-in-progress")


def _backoff(error: ExplainedError, failures: int) -> float:
    """Seconds until the next attempt after consecutive failures: Retry-After, else exponential backoff."""
    retry_after = error.retry_after if isinstance(error, ApiError) else None
    return max(MIN_POLL_SECONDS, retry_after if retry_after is not None else 0.5 * 2 ** min(failures - 1, 4))


def _seconds(retry_after: str | None) -> float | None:
    if retry_after and retry_after.isascii() and retry_after.isdigit():
        return min(float(retry_after), MAX_RETRY_AFTER)
    return None


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None
