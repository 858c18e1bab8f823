"""Errors as people and programs get them: problem details for HTTP APIs (RFC 9457)."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

log = structlog.get_logger(__name__)

CONTENT_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:shrinkstream:problem:"


class Problem(Exception):
    """An answer that says what is wrong. ``code`` is stable; ``detail`` is for people."""

    def __init__(
        self,
        status: HTTPStatus,
        code: str,
        detail: str,
        *,
        errors: Sequence[Mapping[str, Any]] | None = None,
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
        body: dict[str, Any] = {
            "type": TYPE_PREFIX + self.code,
            "title": self.status.phrase,
            "status": self.status.value,
            "detail": self.detail,
            **self.members,
        }
        if self.errors is not None:
            body["errors"] = list(self.errors)
        return web.Response(
            status=self.status.value, body=orjson.dumps(body), content_type=CONTENT_TYPE, headers=self.headers
        )


def not_found(request_id: str) -> Problem:
    return Problem(HTTPStatus.NOT_FOUND, "unknown-request", f"there is no request {request_id[:64]}")


def unavailable(what: str) -> Problem:
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "unavailable",
        f"{what}; try again in a moment",
        headers={"Retry-After": "2"},
    )


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
        return Problem(
            HTTPStatus.INTERNAL_SERVER_ERROR, "internal", "something went wrong here, and it has been logged"
        ).response()


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
