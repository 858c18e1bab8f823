"""What a receiver is told: ids and bodies, the same whenever they are made again from the same event."""

from collections.abc import Mapping
from typing import Any
from uuid import uuid5

import orjson
from pydantic.alias_generators import to_camel

from streams.events import NAMESPACE, ImagesSettled, RequestCompleted, WebhookKind
from streams.status import WebhookMessage, completed_status


def completion_id(request_id: str, run: int) -> str:
    """The id of the message about one completion: each run of a request has its own."""
    event_id = RequestCompleted.id_of(request_id, str(run))
    return f"msg_{uuid5(NAMESPACE, f'webhook/{event_id}').hex}"


def message(event: RequestCompleted) -> bytes:
    """The body: what happened, when, and the status object."""
    body = WebhookMessage(type="request.completed", timestamp=event.time, data=completed_status(event, "pending"))
    return body.model_dump_json(by_alias=True).encode()


def images_id(event: ImagesSettled, kind: WebhookKind) -> str:
    """The id of the message about those of some images that were processed, or failed."""
    return f"msg_{uuid5(NAMESPACE, f'webhook/{event.id}/{kind}').hex}"


def images_message(event: ImagesSettled, kind: WebhookKind, images: Mapping[int, Mapping[str, Any]]) -> bytes | None:
    """The body about those of ``images`` (their rows in the history, by index) that ``kind`` is about; None if none is.

    After a retry it is about those that were asked for again.
    """
    wanted = {index: image for index, image in images.items() if image["attempt"] >= event.run and _is(kind, image)}
    if not wanted:
        return None
    return orjson.dumps(
        {
            "type": kind,
            "timestamp": event.time,
            "data": {
                "requestId": event.request_id,
                "request_id": event.request_id,
                "images": [_shown(index, image) for index, image in sorted(wanted.items())],
            },
        },
        option=orjson.OPT_UTC_Z,
    )


def _is(kind: WebhookKind, image: Mapping[str, Any]) -> bool:
    return (image["output_path"] is not None) == (kind == "image.processed")


def _shown(index: int, image: Mapping[str, Any]) -> dict[str, Any]:
    names = (
        ("product_name", "input_url", "output_url", "input_bytes", "output_bytes", "format", "width", "height")
        if image["output_path"]
        else ("product_name", "input_url", "reason", "detail")
    )
    return {"index": index} | {to_camel(name): image[name] for name in names}
