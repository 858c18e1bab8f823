"""Error responses: problem details for HTTP APIs (RFC 9457)."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

logger = structlog.get_logger(__name__)

CONTENT_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:shrinkstream:problem:"
RETRY_AFTER_SECONDS = "2"


class RowProblem(BaseModel):
    """One error in an uploaded CSV."""

    row: int = Field(description="line number of the row's first line in the file, from 1")
    column: str | None = Field(description="header of the column; null for an error of the whole row or file")
    code: str = Field(description="stable error code")
    message: str = Field(description="human-readable message")


class ProblemDetails(BaseModel):
    """Body of every error response (RFC 9457)."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="allow")

    type: str = Field(pattern=f"^{TYPE_PREFIX}[a-z0-9-]+$", description="stable, for programs")
    title: str = Field(description="reason phrase of the HTTP status")
    status: int
    detail: str = Field(description="human-readable description of this error")
    errors: list[RowProblem] | None = Field(None, description="for a CSV: errors of the first 100 bad rows")
    error_count: int | None = Field(None, description="for a CSV: number of bad rows")


class Problem(Exception):
    """An error response (RFC 9457). ``code`` is stable, for programs; ``detail`` is for people."""

    def __init__(
        self,
        status: HTTPStatus,
        code: str,
        detail: str,
        *,
        errors: Sequence[RowProblem] | None = None,
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = errors
        self.headers = headers or {}
        self.members = members

    def response(self) -> web.Response:
        members = self.members if self.errors is None else {**self.members, "errors": list(self.errors)}
        details = ProblemDetails(
            type=TYPE_PREFIX + self.code,
            title=self.status.phrase,
            status=self.status.value,
            detail=self.detail,
            **members,
        )
        return web.Response(
            status=self.status.value,
            body=details.model_dump_json(by_alias=True, exclude_unset=True).encode(),
            content_type=CONTENT_TYPE,
            headers=self.headers,
        )


def not_found(request_id: str) -> Problem:
    return Problem(HTTPStatus.NOT_FOUND, "unknown-request", f"there is no request {request_id[:64]}")


def expired() -> Problem:
    return Problem(HTTPStatus.GONE, "expired", "this request's files have expired and were deleted")


def unavailable(reason: str) -> Problem:
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "unavailable",
        f"{reason}; retry after {RETRY_AFTER_SECONDS} s",
        headers={"Retry-After": RETRY_AFTER_SECONDS},
    )


def internal_error() -> Problem:
    return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", "internal server error; see the server's log")


@web.middleware
async def problem_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Convert every error into problem details, without internal information."""
    try:
        return await handler(request)
    except Problem as problem:
        return problem.response()
    except web.HTTPException as error:
        if error.status < HTTPStatus.BAD_REQUEST:
            raise
        status = HTTPStatus(error.status)
        allowed = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        return Problem(status, _code(status), _detail(error), headers=allowed).response()
    except Exception:
        logger.exception("request failed", method=request.method, path=request.path)
        if request.writer.output_size > 0:
            # A second response would be read as the rest of the first.
            raise ConnectionError("response already started; aborting the connection") from None
        return internal_error().response()


def _code(status: HTTPStatus) -> str:
    # Python 3.13 renamed the phrase of 413; a code never changes.
    return "too-large" if status.value == 413 else status.phrase.lower().replace(" ", "-")


def _detail(error: web.HTTPException) -> str:
    match error.status:
        case HTTPStatus.NOT_FOUND:
            return "no route matches this path"
        case HTTPStatus.METHOD_NOT_ALLOWED:
            return "this path doesn't support this method"
        case _:
            return error.reason
