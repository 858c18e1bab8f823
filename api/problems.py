"""Errors as people and programs get them: problem details for HTTP APIs (RFC 9457)."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

log = structlog.get_logger(__name__)

CONTENT_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:shrinkstream:problem:"


class RowProblem(BaseModel):
    """One thing that is wrong with an uploaded CSV."""

    row: int = Field(description="line of the file, from 1, on which the row begins, as a text editor counts")
    column: str | None = Field(description="header cell of the column, if it is about one")
    code: str = Field(description="stable")
    message: str = Field(description="the same for people")


class ProblemDetails(BaseModel):
    """What every error is answered with (RFC 9457)."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="allow")

    type: str = Field(pattern=f"^{TYPE_PREFIX}[a-z0-9-]+$", description="stable, for programs")
    title: str = Field(description="the HTTP status in words")
    status: int
    detail: str = Field(description="what is wrong here, for people")
    errors: list[RowProblem] | None = Field(None, description="of a CSV: what is wrong with its first 100 bad rows")
    error_count: int | None = Field(None, description="of a CSV: how many rows are bad in all")


class Problem(Exception):
    """An answer that says what is wrong. ``code`` is stable; ``detail`` is for people."""

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
    return Problem(HTTPStatus.GONE, "expired", "the files of this request had their time and were removed")


def unavailable(what: str) -> Problem:
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "unavailable",
        f"{what}; try again in a moment",
        headers={"Retry-After": "2"},
    )


def internal_error() -> Problem:
    return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", "something went wrong here, and it has been logged")


@web.middleware
async def problem_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error leaves as a problem, and nothing internal leaves with it."""
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
        log.exception("request failed", method=request.method, path=request.path)
        if request.writer.output_size > 0:
            # Another answer would be taken for the rest of this one.
            raise ConnectionError("the answer has begun, so it can only be broken off") from None
        return internal_error().response()


def _code(status: HTTPStatus) -> str:
    # Python 3.13 renamed the phrase of 413; a code is for ever.
    return "too-large" if status.value == 413 else status.phrase.lower().replace(" ", "-")


def _detail(error: web.HTTPException) -> str:
    match error.status:
        case HTTPStatus.NOT_FOUND:
            return "there is nothing at this address"
        case HTTPStatus.METHOD_NOT_ALLOWED:
            return "this address doesn't answer to this method"
        case _:
            return error.reason
