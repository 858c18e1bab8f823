"""JSON models of the responses, apart from the status object."""

from typing import Generic, Literal, TypeVar

from pydantic import AwareDatetime, Field

from streams.events.base import JsonModel
from streams.request.status import OfRequest, Status

T = TypeVar("T")

ImageStatus = Literal["succeeded", "failed", "pending", "cancelled"]


class Page(JsonModel, Generic[T]):
    """A page of a list. Fetch the next page with the opaque cursor as ``?cursor=``."""

    items: list[T]
    next_cursor: str | None = Field(None, description="null on the last page")


class Image(JsonModel):
    """One image of a request. Without a result, only ``index`` and ``status`` are set."""

    index: int = Field(description="index of the URL among all URLs of the CSV, from 0")
    status: ImageStatus = Field(description="`cancelled`: not processed, because the request was cancelled")
    row: int | None = Field(None, description="CSV row, from 0, without the header")
    serial: str | None = None
    product_name: str | None = None
    input_url: str | None = None
    output_url: str | None = Field(None, description="null if the image failed or the request has expired")
    reason: str | None = Field(None, description="stable reason code of a failure")
    detail: str | None = Field(None, description="human-readable reason of a failure")
    input_bytes: int | None = None
    output_bytes: int | None = None
    format: str | None = Field(None, description="format of the stored image")
    width: int | None = None
    height: int | None = None
    sha256: str | None = Field(None, description="hash of the stored bytes")
    kept_original: bool | None = Field(None, description="true: compression did not make it smaller")
    attempt: int | None = Field(None, description="run of the result: 0, then incremented by each retry")
    milliseconds: int | None = Field(None, description="duration of fetching, compressing and storing")


class ProductImage(JsonModel):
    """One image result in a product's history."""

    request_id: str
    index: int = Field(description="index of the image in its request, from 0")
    requested_at: AwareDatetime
    status: Literal["succeeded", "failed"]
    input_url: str
    output_url: str | None = None
    reason: str | None = Field(None, description="stable reason code of a failure")
    input_bytes: int | None = None
    output_bytes: int | None = None
    format: str | None = None


class Accepted(OfRequest):
    """An upload or a retry was accepted."""

    message: str


class StatusEvent(JsonModel):
    """One server-sent event, of type ``message``."""

    id: str = Field(description="for `Last-Event-ID` when reconnecting")
    data: str = Field(
        description="the status object as JSON",
        json_schema_extra={
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": "#/components/schemas/Status"},
        },
    )


class RequestPage(Page[Status]):
    """Requests, newest first."""


class ImagePage(Page[Image]):
    """The images of a request, in CSV order."""


class ProductHistoryPage(Page[ProductImage]):
    """The processed images of a product, newest first."""


class ResultSums(JsonModel):
    """Sums over the image results of an interval."""

    succeeded: int = 0
    failed: int = 0
    input_bytes: int = Field(0, description="of the images that succeeded")
    output_bytes: int = 0


class LogEntry(JsonModel):
    """An event, or the results of an interval."""

    time: AwareDatetime
    until: AwareDatetime | None = Field(None, description="time of the last result of an `ImageResults` entry")
    event: str = Field(description="name of the event; `ImageResults` for the results of an interval")
    text: str = Field(description="human-readable description")
    results: ResultSums | None = None


class RequestLog(JsonModel):
    """The events of a request, oldest first."""

    entries: list[LogEntry]
    whole: bool = Field(description="false: the log is truncated")
