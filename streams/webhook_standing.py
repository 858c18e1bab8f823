"""How a request's webhook stands, from the events about it in any order and any number.

Each event says of a standing how it is; the greatest is the one that holds. The completion of a later run outdoes
all that was said of an earlier one. Within a run, a receiver that confirmed has confirmed, whatever else is
said; else the last redelivery that somebody asked for counts: pending until it fails as well.
"""

from typing import Literal, NamedTuple

from streams.events import Event, RequestCompleted, WebhookDelivered, WebhookFailed, WebhookRedeliveryRequested

WebhookState = Literal["pending", "delivered", "failed"]


class Standing(NamedTuple):
    """Compared from the first field to the last."""

    run: int
    delivered: bool
    after_attempt: int
    failed: bool

    @property
    def state(self) -> WebhookState:
        return "delivered" if self.delivered else "failed" if self.failed else "pending"


def standing(event: Event) -> Standing | None:
    """What an event says of the webhook that tells the receiver of its request's completion, if anything."""
    match event:
        case RequestCompleted() if event.webhook_url:
            return Standing(event.run, False, 0, False)
        case WebhookDelivered(kind="request.completed"):
            return Standing(event.run, True, 0, False)
        case WebhookFailed(kind="request.completed"):
            return Standing(event.run, False, event.after_attempt, True)
        case WebhookRedeliveryRequested(kind="request.completed"):
            return Standing(event.run, False, event.after_attempt, False)
        case _:
            return None
