"""Lists in parts: ``?limit=`` and ``?cursor=``."""

import base64
import binascii
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

import orjson
from aiohttp import web
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from api.problems import Problem
from api.routes import Parameter

T = TypeVar("T")

MAX_CURSOR_LENGTH = 500

PAGE_PROBLEMS = {
    HTTPStatus.BAD_REQUEST: "A parameter of the query can't be used.",
    HTTPStatus.SERVICE_UNAVAILABLE: "The list is not known just now; try again after `Retry-After` seconds.",
}


def page_parameters(*, most: int) -> tuple[Parameter, ...]:
    """How the parameters of a list are described."""
    return (
        Parameter("limit", "query", Annotated[int, Field(ge=1, le=most)], "how many to tell at once"),
        Parameter("cursor", "query", str, "`nextCursor` of the page before"),
    )


def limit_of(request: web.Request, *, default: int, most: int) -> int:
    """How many items are asked for; Problem where that is no number from 1 to ``most``."""
    text = request.query.get("limit", "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= most):
        raise bad_query("limit", f"it must be a number from 1 to {most}")
    return int(text)


def cursor_of(request: web.Request, kind: TypeAdapter[T]) -> T | None:
    """The place that the cursor stands for, or None without one; Problem for one that is none of ours."""
    text = request.query.get("cursor", "")
    if not text:
        return None
    try:
        place = base64.b64decode(text[:MAX_CURSOR_LENGTH] + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        return kind.validate_python(orjson.loads(place))
    except (ValueError, binascii.Error, ValidationError):
        raise bad_query("cursor", "it is none that this address has given out") from None


def cursor_to(place: Any) -> str:
    """A place in a list as a cursor. It tells nobody anything, and may be forged: it must give access to nothing."""
    return base64.urlsafe_b64encode(orjson.dumps(place)).decode().rstrip("=")


def choice_of(request: web.Request, name: str, choices: tuple[str, ...]) -> str | None:
    """A query parameter that is one of some words, or None where it is not given."""
    word = request.query.get(name) or None
    if word is not None and word not in choices:
        raise bad_query(name, f"it must be one of {', '.join(choices)}")
    return word


def bad_query(name: str, why: str) -> Problem:
    return Problem(HTTPStatus.BAD_REQUEST, "bad-query", f"{name} can't be used: {why}")


def json_answer(
    model: BaseModel, *, status: HTTPStatus = HTTPStatus.OK, headers: dict[str, str] | None = None
) -> web.Response:
    return web.Response(
        body=model.model_dump_json(by_alias=True).encode(),
        status=status,
        content_type="application/json",
        charset="utf-8",
        headers=headers,
    )
