"""What a receiver is told: ids and bodies, the same whenever they are made again from the same event."""

from uuid import uuid5

from streams.events import NAMESPACE, RequestCompleted
from streams.status import WebhookMessage, completed_status


def completion_id(request_id: str, run: int) -> str:
    """The id of the message about one completion: each run of a request has its own."""
    event_id = RequestCompleted.id_of(request_id, str(run))
    return f"msg_{uuid5(NAMESPACE, f'webhook/{event_id}').hex}"


def message(event: RequestCompleted) -> bytes:
    """The body: what happened, when, and the status object."""
    body = WebhookMessage(type="request.completed", timestamp=event.time, data=completed_status(event, "pending"))
    return body.model_dump_json(by_alias=True).encode()
