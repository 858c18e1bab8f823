"""Ids and bodies of webhook messages: deterministic functions of their event."""

from collections.abc import Mapping
from typing import Any, Generic, Literal, TypeVar
from uuid import uuid5

from pydantic import AwareDatetime, BaseModel, Field

from streams.events.base import NAMESPACE, JsonModel, WebhookKind
from streams.events.progress import ImagesSettled
from streams.events.requests import RequestCompleted
from streams.request.status import OfRequest, WebhookMessage, completed_status


def completion_id(request_id: str, run: int) -> str:
    """The id of the message about one completion: each run of a request has its own."""
    event_id = RequestCompleted.id_of(request_id, str(run))
    return f"msg_{uuid5(NAMESPACE, f'webhook/{event_id}').hex}"


def message(event: RequestCompleted) -> bytes:
    """The body of the webhook about a completion: type, time and the status object."""
    body = WebhookMessage(type="request.completed", timestamp=event.time, data=completed_status(event, "pending"))
    return body.model_dump_json(by_alias=True).encode()


def images_id(event: ImagesSettled, kind: WebhookKind) -> str:
    """The id of the message of one kind about a group of settled images."""
    return f"msg_{uuid5(NAMESPACE, f'webhook/{event.id}/{kind}').hex}"


class _About(JsonModel):
    """One image in a message."""

    index: int = Field(description="index among the images of the request, from 0")
    product_name: str
    input_url: str


class ProcessedImage(_About):
    """An image that was processed."""

    output_url: str
    input_bytes: int
    output_bytes: int
    format: str
    width: int
    height: int


class FailedImage(_About):
    """An image that failed."""

    reason: str = Field(description="its stable code")
    detail: str | None


About = TypeVar("About", ProcessedImage, FailedImage)


class Images(OfRequest, Generic[About]):
    """Images of one request that got their results."""

    images: list[About]


class ImagesProcessedMessage(BaseModel):
    """The body of a webhook about images that were processed."""

    type: Literal["image.processed"] = "image.processed"
    timestamp: AwareDatetime
    data: Images[ProcessedImage]


class ImagesFailedMessage(BaseModel):
    """The body of a webhook about images that failed."""

    type: Literal["image.failed"] = "image.failed"
    timestamp: AwareDatetime
    data: Images[FailedImage]


def images_message(event: ImagesSettled, kind: WebhookKind, images: Mapping[int, Mapping[str, Any]]) -> bytes | None:
    """The body about those of ``images`` (their rows in the history, by index) that ``kind`` is about; None if none is.

    Only results of the event's run count: those of a later run belong to a later message.
    """
    wanted = [
        {**image, "index": index}
        for index, image in sorted(images.items())
        if image["run"] == event.run and (image["output_path"] is not None) == (kind == "image.processed")
    ]
    if not wanted:
        return None
    body = ImagesProcessedMessage if kind == "image.processed" else ImagesFailedMessage
    message = body.model_validate({"timestamp": event.time, "data": {"request_id": event.request_id, "images": wanted}})
    return message.model_dump_json(by_alias=True).encode()
