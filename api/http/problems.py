"""Error responses: problem details for HTTP APIs (RFC 9457)."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from enum import Enum
from http import HTTPStatus
from typing import Any

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler
from pydantic import BaseModel, ConfigDict, Field

from streams.events.base import JsonModel

logger = structlog.get_logger(__name__)

CONTENT_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:shrinkstream:problem:"
RETRY_AFTER_SECONDS = "2"
ANSWER_SECONDS = 14.0


class ProblemCode(Enum):
    """Stable code of an error response, with its HTTP status and its meaning for docs/api.md (`make docs`)."""

    def __init__(self, status: int, meaning: str) -> None:
        self.status = HTTPStatus(status)
        self.meaning = meaning

    @property
    def code(self) -> str:
        return self.name.lower().replace("_", "-")

    CSV_REJECTED = 422, "the CSV is invalid: `errors` names the first 100 bad rows, `errorCount` counts all"
    FILE_MISSING = 422, "the form has no file"
    BAD_WEBHOOK_URL = 422, "`webhookUrl` is malformed or a forbidden address"
    BAD_WEBHOOK_EVENTS = 422, "`webhookEvents` has an unknown event"
    BAD_FORMAT = 422, "`format` is unknown"
    BAD_QUALITY = 422, "`quality` is neither an integer from 1 to 100 nor `auto`"
    BAD_SIZE = 422, "`maxWidth` or `maxHeight` is not an integer from 0 to 65535"
    BAD_COLUMNS = 422, "`columns` has an unknown or repeated role, a role without a column, or broken quotes"
    BAD_PARAMETER = 422, "`validate_only` or `forget` is neither true nor false"
    BAD_IDEMPOTENCY_KEY = 422, "`Idempotency-Key` is longer than 255 characters or not printable ASCII"
    IDEMPOTENCY_KEY_REUSED = 422, "the key was used with another file or other fields in the last 24 hours"
    BODY_MISSING = 400, "the request body is empty"
    BAD_FORM = 400, "the multipart form is malformed"
    UPLOAD_UNREADABLE = 400, "the upload was aborted, or can't be decompressed"
    BAD_QUERY = 400, "`limit`, `cursor`, `status`, `reason` or `from` is invalid"
    BROKEN_HTTP = 400, "malformed HTTP/1.1 request"
    UNAUTHORIZED = 401, "the API key is missing or invalid"
    FOREIGN_PAGE = 403, "rejected by the [CSRF or DNS-rebinding protection](#keys) of an API without keys"
    UNKNOWN_REQUEST = 404, "there is no such request, or it belongs to another key"
    UNKNOWN_IMAGE = 404, "there is no such image"
    UPLOAD_TOO_SLOW = 408, "the upload timed out, or was slower than 10 KB/s"
    NOT_COMPLETED = 409, "there is no output CSV or archive before the request is completed"
    NOTHING_TO_CANCEL = 409, "every image already has its result"
    ALREADY_COMPLETED = 409, "a completed request can't be cancelled"
    STILL_PROCESSING = 409, "a processing request can't be retried or deleted"
    NOTHING_FAILED = 409, "there is nothing to retry"
    TOO_MANY_RETRIES = 409, "the request was retried 1,000 times"
    UPLOAD_IN_PROGRESS = 409, "another upload with this `Idempotency-Key` is in progress; repeat it after `Retry-After`"
    NO_WEBHOOK = 409, "there is no webhook to redeliver: no receiver, or not completed"
    EXPIRED = 410, "the request's files have expired and were deleted"
    OUTPUT_GONE = 410, "the output CSV or an image was deleted from the storage by another program"
    TOO_LARGE = 413, "the CSV is too large"
    FIELD_TOO_LARGE = 413, "a form field other than the CSV is larger than 8 KiB"
    UNSUPPORTED_MEDIA_TYPE = 415, "the body is neither a form nor a CSV"
    UNSUPPORTED_ENCODING = 415, "`Content-Encoding` is not `gzip`, `deflate` or `identity`"
    EXPECTATION_FAILED = 417, "`Expect` is not `100-continue`"
    TOO_MANY_REQUESTS = 429, "the rate limit is exceeded; retry after `Retry-After`"
    QUOTA_EXCEEDED = 429, "`SHRINKSTREAM_MAX_IMAGES_PER_DAY` or `SHRINKSTREAM_MAX_UPLOAD_BYTES_PER_DAY` is used up"
    INTERNAL = 500, "internal server error; see the server's log"
    UNAVAILABLE = 503, "Kafka, Cassandra or the storage is unavailable, or too many uploads; see `Retry-After`"
    TOO_MANY_STREAMS = 503, "`SHRINKSTREAM_MAX_EVENT_STREAMS` streams are open (a quarter with one key); poll instead"
    NO_ROOM = 507, "the server's disk is full; retry after `Retry-After`"


class RowProblem(BaseModel):
    """One error in an uploaded CSV."""

    row: int = Field(description="line number of the row's first line in the file, from 1; in a spreadsheet its row")
    column: str | None = Field(description="header of the column; null for an error of the whole row or file")
    code: str = Field(description="stable error code")
    message: str = Field(description="human-readable message")


class ProblemDetails(JsonModel):
    """Body of every error response (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(pattern=f"^{TYPE_PREFIX}[a-z0-9-]+$", description="stable, for programs")
    title: str = Field(description="reason phrase of the HTTP status")
    status: int
    detail: str = Field(description="human-readable description of this error")
    errors: list[RowProblem] | None = Field(None, description="for a CSV: errors of the first 100 bad rows")
    error_count: int | None = Field(None, description="for a CSV: number of bad rows")


class Problem(Exception):
    """An error response (RFC 9457). ``code`` is stable, for programs; ``detail`` is for people.

    A bare HTTP status is for errors of the server itself, such as 404 for an unknown path.
    """

    def __init__(
        self,
        code: ProblemCode | HTTPStatus,
        detail: str,
        *,
        status: HTTPStatus | None = None,
        errors: Sequence[RowProblem] | None = None,
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status or (code.status if isinstance(code, ProblemCode) else code)
        self.code = code.code if isinstance(code, ProblemCode) else _code(code)
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
    return Problem(ProblemCode.UNKNOWN_REQUEST, f"there is no request {request_id[:64]}")


def expired() -> Problem:
    return Problem(ProblemCode.EXPIRED, "this request's files have expired and were deleted")


def unavailable(reason: str, **members: Any) -> Problem:
    return Problem(
        ProblemCode.UNAVAILABLE,
        f"{reason}; retry after {RETRY_AFTER_SECONDS} s",
        headers={"Retry-After": RETRY_AFTER_SECONDS},
        **members,
    )


@contextmanager
def unavailable_on(*errors: type[Exception], reason: str) -> Iterator[None]:
    """Turn these errors into a 503."""
    try:
        yield
    except errors:
        raise unavailable(reason) from None


@asynccontextmanager
async def answered_in_time() -> AsyncIterator[None]:
    """Raise a 503 if the waits of a command take longer than ``ANSWER_SECONDS`` altogether."""
    reason = "no answer of Kafka in time: the command may take effect once Kafka is back; repeating it is safe"
    with unavailable_on(TimeoutError, reason=reason):
        async with asyncio.timeout(ANSWER_SECONDS):
            yield


def internal_error() -> Problem:
    return Problem(ProblemCode.INTERNAL, "internal server error; see the server's log")


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
        return Problem(status, _detail(error), headers=allowed).response()
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
