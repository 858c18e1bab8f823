"""A client of the API: what the command line uses, and an example for other programs."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import aiohttp

from infra.errors import EXIT_REFUSED, ExplainedError

REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=900, sock_connect=10, sock_read=120)
UNREACHABLE_PATIENCE = 60.0  # seconds that waiting goes on while the server doesn't answer
UPLOAD_ATTEMPTS = 3
DOWNLOAD_ATTEMPTS = 3
FIRST_PAUSE = 0.2  # seconds between two questions; doubled up to what the server asks for
POLL_SECONDS = 1.0  # where it asks for nothing
LONGEST_PAUSE = 30.0
CHUNK_BYTES = 256 * 1024
IMAGES_PER_PAGE = 1000

# The server, or a proxy before it, will do better in a moment.
PASSING = frozenset(
    {
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)
_STATUS_MEMBERS = ("requestId", "status", "total", "succeeded", "failed", "inputBytes", "outputBytes")


class ApiError(ExplainedError):
    """The server refused; ``problem`` is what it said (RFC 9457), ``retry_after`` the seconds that it asked for."""

    def __init__(self, status: int, problem: dict[str, Any], retry_after: float | None = None) -> None:
        self.status = status
        self.problem = problem
        self.retry_after = retry_after
        self.exit_code = EXIT_REFUSED if status < HTTPStatus.INTERNAL_SERVER_ERROR else ExplainedError.exit_code
        super().__init__(str(problem.get("detail") or problem.get("title") or f"HTTP {status}"))

    @property
    def is_passing(self) -> bool:
        """Whether the same may well succeed later."""
        return self.status in PASSING


class ServerUnreachableError(ExplainedError):
    """Nobody answers at the server's address, or the connection breaks off."""


class NotShrinkstreamError(ExplainedError):
    """Who answers at the server's address is something else."""


class Client:
    """Talks to one server. Use as an async context manager.

    Every method raises ApiError, ServerUnreachableError or NotShrinkstreamError.
    """

    def __init__(self, server: str, api_key: str | None = None) -> None:
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
        webhook_url: str | None = None,
        image_format: str | None = None,
        quality: int | None = None,
        idempotency_key: str,
    ) -> str:
        """Upload a CSV; returns the request's id.

        Where the answer is lost or the server has no room just now, it is sent again with the same key, which makes
        no second request of it. OSError: the file can't be read.
        """
        fields = {"webhookUrl": webhook_url, "format": image_format, "quality": quality}
        given = {name: str(value) for name, value in fields.items() if value}
        for attempt in range(1, UPLOAD_ATTEMPTS + 1):
            try:
                return await self._upload(file, given, idempotency_key)
            except (ServerUnreachableError, ApiError) as error:
                if attempt == UPLOAD_ATTEMPTS or not _is_passing(error):
                    raise
                await asyncio.sleep(_pause_after(error, attempt))
        raise AssertionError("unreachable")

    async def _upload(self, file: Path, fields: dict[str, str], idempotency_key: str) -> str:
        form = aiohttp.FormData()
        for name, value in fields.items():
            form.add_field(name, value)
        with file.open("rb") as content:
            form.add_field("file", content, filename=file.name, content_type="text/csv")
            async with self._request(
                "POST", "/api/upload", data=form, headers={"Idempotency-Key": idempotency_key}
            ) as response:
                answer = await self._json(response, "requestId")
        return str(answer["requestId"])

    async def status(self, request_id: str) -> dict[str, Any]:
        """How far a request is: the status object."""
        async with self._request("GET", f"/api/status/{request_id}") as response:
            return await self._json(response, *_STATUS_MEMBERS)

    async def follow(
        self, request_id: str, *, on_trouble: Callable[[ExplainedError], None] = lambda _: None
    ) -> AsyncIterator[dict[str, Any]]:
        """The status whenever it is another, until it says something else than processing.

        It is asked for as often as the server wants (``Retry-After``), sooner in the beginning. A server that doesn't
        answer is asked again for ``UNREACHABLE_PATIENCE`` seconds, after ``on_trouble`` was told why.
        """
        loop = asyncio.get_running_loop()
        path = f"/api/status/{request_id}"
        reached, troubles, pause = loop.time(), 0, FIRST_PAUSE / 2
        known = ""
        while True:
            try:
                async with self._request("GET", path, headers={"If-None-Match": known} if known else {}) as response:
                    is_news = response.status != HTTPStatus.NOT_MODIFIED
                    if is_news:
                        status = await self._json(response, *_STATUS_MEMBERS)
                        known = response.headers.get("ETag", "")
                    wanted = _seconds(response.headers.get("Retry-After")) or POLL_SECONDS
            except (ServerUnreachableError, ApiError) as error:
                if not _is_passing(error) or loop.time() - reached > UNREACHABLE_PATIENCE:
                    raise
                on_trouble(error)
                troubles += 1
                await asyncio.sleep(_pause_after(error, troubles))
                continue
            if is_news:
                yield status
                if status["status"] != "processing":
                    return
            reached, troubles, pause = loop.time(), 0, min(pause * 2, wanted)
            await asyncio.sleep(pause)

    async def requests(self, limit: int) -> list[dict[str, Any]]:
        """The newest requests, as their status objects."""
        async with self._request("GET", f"/api/requests?limit={limit}") as response:
            items: list[dict[str, Any]] = (await self._json(response, "items"))["items"]
            return items

    async def images(self, request_id: str, status: str | None = None) -> AsyncIterator[dict[str, Any]]:
        """The images of a request, in their order; ``status``: only those of one status."""
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
        """Stop a request; returns its status."""
        async with self._request("POST", f"/api/requests/{request_id}/cancel") as response:
            return await self._json(response, *_STATUS_MEMBERS)

    async def retry(self, request_id: str) -> None:
        """Have the failed images of a request processed again."""
        async with self._request("POST", f"/api/requests/{request_id}/retry"):
            pass

    async def download(self, request_id: str, to: BinaryIO) -> int:
        """Write the output CSV into a file that can be truncated; returns its bytes.

        A transfer that breaks off is begun anew, ``DOWNLOAD_ATTEMPTS`` times in all.
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
                if attempt == DOWNLOAD_ATTEMPTS or not _is_passing(error):
                    raise
                await asyncio.sleep(_pause_after(error, attempt))
        raise AssertionError("unreachable")

    @asynccontextmanager
    async def _request(self, method: str, path: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            async with self._session.request(method, self._server + path, **options) as response:
                if response.status >= HTTPStatus.BAD_REQUEST:
                    raise await self._refusal(response)
                yield response
        except aiohttp.InvalidURL:
            raise NotShrinkstreamError(f"{self._server} is not the address of a server") from None
        except (aiohttp.ClientError, TimeoutError) as error:
            said = (str(error) or "time-out").splitlines()[0]
            raise ServerUnreachableError(f"no answer from {self._server}: {said}") from None

    async def _refusal(self, response: aiohttp.ClientResponse) -> ExplainedError:
        status, retry_after = response.status, _seconds(response.headers.get("Retry-After"))
        problem = _parsed(await response.read())
        if response.content_type == "application/problem+json" and isinstance(problem, dict):
            return ApiError(status, problem, retry_after)
        if status in PASSING:  # said by a proxy
            return ApiError(status, {"detail": f"{self._server} answers {status} {response.reason}"}, retry_after)
        return self._not_ours(f"answers {status} {response.reason}")

    async def _json(self, response: aiohttp.ClientResponse, *members: str) -> dict[str, Any]:
        """The object in an answer, which must have these members."""
        answer = _parsed(await response.read())
        if not isinstance(answer, dict) or not set(members) <= answer.keys():
            raise self._not_ours("answers something else")
        return answer

    def _not_ours(self, how: str) -> NotShrinkstreamError:
        return NotShrinkstreamError(f"{self._server} is not a shrinkstream server: it {how}")


def _is_passing(error: ExplainedError) -> bool:
    return not isinstance(error, ApiError) or error.is_passing


def _pause_after(error: ExplainedError, attempt: int) -> float:
    """Seconds before the next attempt, after the ``attempt``-th in a row that failed."""
    asked = error.retry_after if isinstance(error, ApiError) else None
    return max(FIRST_PAUSE, asked if asked is not None else 0.5 * 2 ** min(attempt - 1, 4))


def _seconds(retry_after: str | None) -> float | None:
    if retry_after and retry_after.isascii() and retry_after.isdigit():
        return min(float(retry_after), LONGEST_PAUSE)
    return None


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None
