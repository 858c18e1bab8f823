"""The answers in JSON that are not the status object, as they are described to the outside."""

from typing import Generic, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, computed_field
from pydantic.alias_generators import to_camel

from streams.request.status import Status

T = TypeVar("T")

ImageStatus = Literal["succeeded", "failed", "pending", "cancelled"]


class Answer(BaseModel):
    """Base of all answers: members are named in camelCase."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)


class Page(Answer, Generic[T]):
    """Some of a list. The next part is got with ``?cursor=`` and the cursor, which has no meaning of its own."""

    items: list[T]
    next_cursor: str | None = Field(None, description="null: there is no more")


class Image(Answer):
    """One image of a request, as the output CSV has it and more. Of one without a result only its index is known."""

    index: int = Field(description="place of the URL among all of the CSV, from 0")
    status: ImageStatus = Field(description="`cancelled`: it was not processed, because the request is cancelled")
    row: int | None = Field(None, description="CSV row, from 0, header not counted")
    serial: str | None = None
    product_name: str | None = None
    input_url: str | None = None
    output_url: str | None = Field(None, description="null of one that failed, or whose request has expired")
    reason: str | None = Field(None, description="why it failed: a stable code")
    detail: str | None = Field(None, description="the same for people")
    input_bytes: int | None = None
    output_bytes: int | None = None
    format: str | None = Field(None, description="format of the stored image")
    width: int | None = None
    height: int | None = None
    sha256: str | None = Field(None, description="hash of the stored bytes")
    kept_original: bool | None = Field(None, description="compressing did not make it smaller")
    attempt: int | None = Field(None, description="0, and one more at each retry")
    milliseconds: int | None = Field(None, description="how long fetching, shrinking and storing took")


class ProductImage(Answer):
    """One time that an image of a product was processed."""

    request_id: str
    index: int = Field(description="place of the image in its request, from 0")
    requested_at: AwareDatetime
    status: Literal["succeeded", "failed"]
    input_url: str
    output_url: str | None = None
    reason: str | None = Field(None, description="why it failed: a stable code")
    input_bytes: int | None = None
    output_bytes: int | None = None
    format: str | None = None


class Accepted(Answer):
    """An upload became a request, or a request goes on."""

    message: str
    request_id: str

    @computed_field(alias="request_id")
    def request_id_in_snake_case(self) -> str:
        """The id once more, for the clients of the other habit."""
        return self.request_id


class StatusEvent(Answer):
    """One event of a stream, of type ``message``."""

    id: str = Field(description="sent back as `Last-Event-ID`")
    data: str = Field(
        description="the status object, as JSON",
        json_schema_extra={
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": "#/components/schemas/Status"},
        },
    )


class RequestPage(Page[Status]):
    """Requests, newest first."""


class ImagePage(Page[Image]):
    """The images of a request, in their order."""


class ProductHistoryPage(Page[ProductImage]):
    """What was processed of a product, newest first."""


class ResultSums(Answer):
    """The results of images in an interval."""

    succeeded: int = 0
    failed: int = 0
    input_bytes: int = Field(0, description="of the images that succeeded")
    output_bytes: int = 0


class LogEntry(Answer):
    """An event, or the results of an interval."""

    time: AwareDatetime
    until: AwareDatetime | None = Field(None, description="when the last of the `results` came, where there are some")
    event: str = Field(description="name of the event; `ImageResults` for those of an interval")
    text: str = Field(description="what happened, for people")
    results: ResultSums | None = None


class RequestLog(Answer):
    """The events of a request, oldest first."""

    entries: list[LogEntry]
    whole: bool = Field(description="false: there are more events than are read for one answer")
