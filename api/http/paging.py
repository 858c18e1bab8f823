"""Cursor pagination: ``?limit=`` and ``?cursor=``."""

import base64
import binascii
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

import orjson
from aiohttp import web
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from api.contract.routes import Parameter
from api.http.problems import Problem, ProblemCode

T = TypeVar("T")

MAX_CURSOR_LENGTH = 500

PAGE_PROBLEMS = {
    HTTPStatus.BAD_REQUEST: "A query parameter is invalid.",
    HTTPStatus.SERVICE_UNAVAILABLE: "Kafka or Cassandra is unavailable; retry after `Retry-After` seconds.",
}


def page_parameters(*, max_limit: int) -> tuple[Parameter, ...]:
    """OpenAPI parameters of a paged list."""
    return (
        Parameter("limit", "query", Annotated[int, Field(ge=1, le=max_limit)], "maximum items per page"),
        Parameter("cursor", "query", str, "`nextCursor` of the previous page"),
    )


def number_of(request: web.Request, name: str, *, default: int, maximum: int) -> int:
    """A numeric query parameter. Raises Problem (400) unless it is a number from 1 to ``maximum``."""
    text = request.query.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= maximum):
        raise bad_query(name, f"it must be a number from 1 to {maximum}")
    return int(text)


def cursor_of(request: web.Request, kind: TypeAdapter[T]) -> T | None:
    """The decoded cursor, or None without one. Raises Problem (400) for an invalid cursor."""
    text = request.query.get("cursor", "")
    if not text:
        return None
    try:
        encoded = base64.b64decode(text[:MAX_CURSOR_LENGTH] + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        return kind.validate_python(orjson.loads(encoded))
    except (ValueError, binascii.Error, ValidationError):
        raise bad_query("cursor", "use `nextCursor` of an earlier page of this list") from None


def cursor_to(position: Any) -> str:
    """Encode a list position as an opaque cursor. It is neither secret nor signed, so it must not grant any access."""
    return base64.urlsafe_b64encode(orjson.dumps(position)).decode().rstrip("=")


def choice_of(request: web.Request, name: str, choices: tuple[str, ...]) -> str | None:
    """An enum query parameter, or None without it. Raises Problem (400) for an unknown value."""
    word = request.query.get(name) or None
    if word is not None and word not in choices:
        raise bad_query(name, f"it must be one of {', '.join(choices)}")
    return word


def flag_of(request: web.Request, name: str) -> bool:
    """A boolean query parameter; absent: false. Raises Problem (422) for anything but true, false, 1 and 0."""
    match request.query.get(name, "false").lower():
        case "true" | "1":
            return True
        case "false" | "0":
            return False
    raise Problem(ProblemCode.BAD_PARAMETER, f"{name} must be true or false")


def bad_query(name: str, why: str) -> Problem:
    return Problem(ProblemCode.BAD_QUERY, f"invalid {name}: {why}")


def json_response(
    model: BaseModel, *, status: HTTPStatus = HTTPStatus.OK, headers: dict[str, str] | None = None
) -> web.Response:
    return web.Response(
        body=model.model_dump_json(by_alias=True).encode(),
        status=status,
        content_type="application/json",
        charset="utf-8",
        headers=headers,
    )
