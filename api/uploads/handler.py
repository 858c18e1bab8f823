"""Atomic upload: receive the CSV into a spool file, validate all of it, then publish its events.

RequestCreated is published after the brokers have acknowledged every ImageRequested. A crash before that leaves orphan
images without a visible request; a crash after it leaves a request that completes.
"""

import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from typing import Annotated, Literal, get_args, get_type_hints

from aiohttp import web
from pydantic import BaseModel, Field, StringConstraints, WithJsonSchema

from api.context import CONTEXT
from api.contract.models import Accepted
from api.contract.routes import Parameter, Response, Route
from api.http.api_keys import OWNER
from api.http.paging import flag_of, json_response
from api.http.problems import Problem, ProblemCode, RowProblem
from api.http.quotas import QUOTA
from api.http.trace_header import TRACEPARENT
from api.uploads.csv.reader import CheckedCsv, CsvRejected, check_in_steps, next_step
from api.uploads.idempotency import (
    MAX_KEY_CHARS,
    UploadInProgress,
    claim_for,
    idempotency_key,
    is_request,
    is_soon_request,
    sole_writer,
)
from api.uploads.limiter import UPLOADS
from api.uploads.options import UploadOptions
from api.uploads.publish import CheckedUpload, publish_events
from api.uploads.receive import RAW_TYPES, Received, receive
from api.uploads.spreadsheet import as_csv
from streams.events.base import MAX_SIDE, AnyQuality, ImageFormat, JsonModel, WebhookKind

# Empty: a web form field that was left blank; no receiver.
WebhookUrl = Annotated[str, WithJsonSchema({"type": "string", "anyOf": [{"format": "uri"}, {"maxLength": 0}]})]

WebhookEvents = Annotated[
    str, StringConstraints(pattern=r"^(({0})(,({0}))*)?$".format("|".join(map(re.escape, get_args(WebhookKind)))))
]


# A line of CSV, `role:column,role:column`; which columns there are is up to the file.
Columns = Annotated[str, WithJsonSchema({"type": "string", "anyOf": [{"format": "column-mapping"}, {"maxLength": 0}]})]


MaxSide = Annotated[int, Field(ge=0, le=MAX_SIDE)]


class Report(JsonModel):
    """Validation report of an upload; ``rows`` and ``images`` count all that were read, valid or not."""

    valid: bool = Field(description="whether the same upload without `validate_only` would be accepted")
    rows: int
    images: int
    detail: str = Field(description="human-readable summary")
    errors: list[RowProblem] = Field(description="errors of the first 100 bad rows")
    error_count: int = Field(description="number of bad rows")
    header: list[str] = Field(description="names of the file's columns; empty if it has no readable header")


class UploadForm(BaseModel):
    """The form of an upload. The one part with a file name is the CSV, whatever the part's name."""

    file: bytes = Field(description="the CSV or spreadsheet")
    webhookUrl: WebhookUrl = Field(
        "", description="receives the completion webhook; also `webhook_url`", examples=["https://shop.example/hook"]
    )
    webhookEvents: WebhookEvents = Field(
        "", description="additional webhook events, comma-separated", examples=["image.processed,image.failed"]
    )
    format: ImageFormat | Literal[""] = Field("", description="output format; empty: the format of each input image")
    quality: AnyQuality | Literal[""] = Field(
        "", description="1 to 100, or `auto`: chosen for each image; empty: the default of the settings"
    )
    maxWidth: MaxSide | Literal[""] = Field(
        "",
        description="largest width of the results in pixels: images are made smaller in proportion, never larger; 0: no"
        " limit; empty: the default of the settings",
        examples=[1600],
    )
    maxHeight: MaxSide | Literal[""] = Field("", description="largest height, as `maxWidth`", examples=[1600])
    columns: Columns = Field(
        "",
        description="names of the file's columns by role, as in `product:Title,urls:Image Src`; empty: the usual ones",
        examples=["product:Product Name,urls:Input Image URLs"],
    )


def _query_parameters() -> Iterator[Parameter]:
    """The fields of the form other than the file, which a query may have as well."""
    types = get_type_hints(UploadForm, include_extras=True)
    for name, field in UploadForm.model_fields.items():
        if name != "file":
            example = field.examples[0] if field.examples else None
            yield Parameter(name, "query", types[name], f"{field.description}; also a form field", example)


async def upload(request: web.Request) -> web.Response:
    """``POST /api/upload`` and its aliases."""
    validate_only = flag_of(request, "validate_only")
    key = idempotency_key(request)
    with request.app[UPLOADS].admit(request[OWNER]):
        return await (_validate(request) if validate_only else _accept(request, key))


async def _validate(request: web.Request) -> web.Response:
    try:
        async with _checked(request) as (_, _, checked):
            report = _report(checked, "the file can be used as it is")
    except CsvRejected as rejected:
        report = _report(rejected, rejected.detail, _row_problems(rejected), rejected.error_count)
    return json_response(report)


def _report(
    file: CheckedCsv | CsvRejected, detail: str, errors: Sequence[RowProblem] = (), error_count: int = 0
) -> Report:
    return Report(
        valid=not error_count,
        rows=file.rows,
        images=file.images,
        detail=detail,
        errors=list(errors),
        error_count=error_count,
        header=list(file.header),
    )


async def _accept(request: web.Request, key: str) -> web.Response:
    context = request.app[CONTEXT]
    owner = request[OWNER]
    try:
        async with _checked(request) as (received, options, checked):
            claim = await claim_for(context, owner, key, received.fingerprint)
            if claim.is_new or not await is_request(context, claim):
                upload = CheckedUpload(claim.request_id, claim.created_at, owner, received, checked, options)
                try:
                    async with sole_writer(context.session, owner, key, claim):
                        with request.app[QUOTA].spend(owner, checked.images, received.size):
                            await publish_events(context, request.app[UPLOADS], upload)
                except UploadInProgress:
                    if not await is_soon_request(context, claim):
                        raise
    except CsvRejected as rejected:
        raise Problem(
            ProblemCode.CSV_REJECTED,
            rejected.detail,
            errors=_row_problems(rejected),
            errorCount=rejected.error_count,
        ) from None
    return _accepted(claim.request_id)


def _accepted(request_id: str) -> web.Response:
    accepted = Accepted(message="The file was accepted and its images are being processed.", request_id=request_id)
    return json_response(accepted, status=HTTPStatus.ACCEPTED, headers={"Location": f"/api/status/{request_id}"})


@asynccontextmanager
async def _checked(request: web.Request) -> AsyncIterator[tuple[Received, UploadOptions, CheckedCsv]]:
    """Receive the file of an upload and validate all of it. Raises CsvRejected and Problem."""
    context, uploads = request.app[CONTEXT], request.app[UPLOADS]
    async with receive(request, context.settings) as uploaded:
        options = UploadOptions.of(uploaded.fields, context.settings, context.fetch_allow)
        async with as_csv(uploaded, options.columns, context.settings, uploads) as received:
            steps = check_in_steps(
                received.path,
                max_images=context.settings.max_images_per_request,
                content_type=received.content_type,
                mapping=options.columns,
                dialect=received.dialect,
            )
            try:
                while (checked := await uploads.run(partial(next_step, steps))) is None:
                    pass
            except CsvRejected as rejected:
                if received.sheet is not None:
                    rejected.detail = f"sheet “{received.sheet}”: {rejected.detail}"
                raise
            yield received, options, checked


def _row_problems(rejected: CsvRejected) -> list[RowProblem]:
    return [
        RowProblem(row=error.row, column=error.column, code=error.code, message=error.message)
        for error in rejected.errors
    ]


def routes() -> list[Route]:
    """The upload route and its aliases, which clients of other systems use unchanged."""
    return [
        Route(
            "POST",
            "/api/upload",
            upload,
            tag="Requests",
            summary="Upload a CSV of image URLs",
            description="The CSV has the columns `S. No.`, `Product Name` and `Input Image URLs`, in any order; extra"
            " columns are allowed. A cell holds one or more URLs, separated by commas. Of a spreadsheet (XLSX, XLS,"
            " ODS), the first visible sheet with the columns is read as a CSV. Send it as the file of a form,"
            f" or as the body ({', '.join(f'`{name}`' for name in sorted(RAW_TYPES))}), optionally compressed with"
            " gzip. One bad row rejects the whole CSV; nothing of it is processed then.",
            parameters=(
                Parameter(
                    "validate_only", "query", bool, "validate only and answer with a report (200); publish no events"
                ),
                *_query_parameters(),
                Parameter(
                    "Idempotency-Key",
                    "header",
                    Annotated[str, StringConstraints(max_length=MAX_KEY_CHARS)],
                    "makes an upload safe to retry: the same key, file and fields within 24 hours return the first"
                    " request's id",
                    "order-4711",
                ),
                TRACEPARENT,
            ),
            body={"multipart/form-data": UploadForm, "text/csv": str},
            responses={
                HTTPStatus.ACCEPTED: Response(
                    "The upload was accepted", {"application/json": Accepted}, {"Location": "URL of the status"}
                ),
                HTTPStatus.OK: Response("With `validate_only`: the validation report", {"application/json": Report}),
            },
            problems={
                HTTPStatus.BAD_REQUEST: "The form or the compressed body is malformed or truncated.",
                HTTPStatus.REQUEST_TIMEOUT: "The upload timed out.",
                HTTPStatus.CONFLICT: "Another upload with this Idempotency-Key is being processed; retry after"
                " `Retry-After` seconds.",
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The CSV is too large, compressed or decompressed.",
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "The body is neither a form nor a CSV.",
                HTTPStatus.UNPROCESSABLE_ENTITY: "The CSV is invalid, with each bad row in `errors`; or a parameter is"
                " invalid, or the Idempotency-Key was used for another upload.",
                HTTPStatus.INSUFFICIENT_STORAGE: "The API's disk is full; retry after `Retry-After` seconds.",
                HTTPStatus.SERVICE_UNAVAILABLE: "Kafka or Cassandra is unavailable, or there are too many concurrent"
                " uploads; retry after `Retry-After` seconds.",
            },
            aliases=("/api/images/upload", "/upload"),
        )
    ]
