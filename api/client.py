"""A client of the API: what the command line uses, and an example for other programs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from infra.errors import ExplainedError

REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=900, sock_connect=10, sock_read=120)
UNREACHABLE_PATIENCE = 60.0  # seconds that waiting goes on while the server doesn't answer


class ApiError(ExplainedError):
    """The server refused; ``problem`` is what it said (RFC 9457)."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        self.status = status
        self.problem = problem
        super().__init__(str(problem.get("detail") or problem.get("title") or f"HTTP {status}"))


class ServerUnreachableError(ExplainedError):
    """Nobody answers at the server's address."""


class Client:
    """Talks to one server. Use as an async context manager."""

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
        idempotency_key: str | None = None,
    ) -> str:
        """Upload a CSV; returns the request's id."""
        form = aiohttp.FormData()
        for name, value in (("webhookUrl", webhook_url), ("format", image_format), ("quality", quality)):
            if value:
                form.add_field(name, str(value))
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        with file.open("rb") as content:
            form.add_field("file", content, filename=file.name, content_type="text/csv")
            async with self._request("POST", "/api/upload", data=form, headers=headers) as response:
                answer = await response.json()
        return str(answer["requestId"])

    async def status(self, request_id: str) -> dict[str, Any]:
        async with self._request("GET", f"/api/status/{request_id}") as response:
            status: dict[str, Any] = await response.json()
            return status

    async def follow(self, request_id: str, *, poll_seconds: float = 0.5) -> AsyncIterator[dict[str, Any]]:
        """The status again and again, until it is something else than processing."""
        loop = asyncio.get_running_loop()
        reached = loop.time()
        while True:
            try:
                status = await self.status(request_id)
                reached = loop.time()
            except (ServerUnreachableError, ApiError) as error:
                passing = not isinstance(error, ApiError) or error.status == 503
                if not passing or loop.time() - reached > UNREACHABLE_PATIENCE:
                    raise
            else:
                yield status
                if status["status"] != "processing":
                    return
            await asyncio.sleep(poll_seconds)

    async def requests(self, limit: int) -> list[dict[str, Any]]:
        """The newest requests, as their status objects."""
        async with self._request("GET", f"/api/requests?limit={limit}") as response:
            items: list[dict[str, Any]] = (await response.json())["items"]
            return items

    async def cancel(self, request_id: str) -> dict[str, Any]:
        """Stop a request; returns its status."""
        async with self._request("POST", f"/api/requests/{request_id}/cancel") as response:
            status: dict[str, Any] = await response.json()
            return status

    async def retry(self, request_id: str) -> None:
        """Have the failed images of a request processed again."""
        async with self._request("POST", f"/api/requests/{request_id}/retry"):
            pass

    async def download(self, request_id: str) -> bytes:
        """The output CSV."""
        async with self._request("GET", f"/api/download/{request_id}") as response:
            return await response.read()

    @asynccontextmanager
    async def _request(self, method: str, path: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            async with self._session.request(method, self._server + path, **options) as response:
                if response.status >= 400:
                    raise ApiError(response.status, await _problem(response))
                yield response
        except (aiohttp.ClientConnectionError, TimeoutError) as error:
            raise ServerUnreachableError(f"no answer from {self._server}: {error or 'time-out'}") from None


async def _problem(response: aiohttp.ClientResponse) -> dict[str, Any]:
    if not response.content_type.endswith("json"):
        return {"detail": f"HTTP {response.status} {response.reason}"}
    problem = await response.json()
    return problem if isinstance(problem, dict) else {}
