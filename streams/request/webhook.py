"""Delivery status of a request's webhook, from the events about it in any order and any number.

Each event says one status; the greatest holds. The completion of a later run supersedes everything about an
earlier one. Within a run a confirmed delivery is final; otherwise the last manual redelivery counts: pending until
it fails as well.
"""

from typing import Literal, NamedTuple, Self

from streams.events.base import Event
from streams.events.requests import RequestCompleted
from streams.events.webhooks import WebhookDelivered, WebhookFailed, WebhookRedeliveryRequested

WebhookState = Literal["pending", "delivered", "failed"]


class DeliveryStatus(NamedTuple):
    """Ordered by the fields from first to last. ``after_attempt``: delivery attempts before the manual redelivery."""

    run: int
    delivered: bool
    after_attempt: int
    failed: bool

    @classmethod
    def of(cls, state: WebhookState, run: int) -> Self:
        """The status of the first deliveries about a run, from its state."""
        return cls(run, state == "delivered", 0, state == "failed")

    @property
    def state(self) -> WebhookState:
        return "delivered" if self.delivered else "failed" if self.failed else "pending"


def delivery_status(event: Event) -> DeliveryStatus | None:
    """The status that an event implies for the webhook of its request's completion; None for all other events."""
    match event:
        case RequestCompleted() if event.webhook_url:
            return DeliveryStatus(event.run, False, 0, False)
        case WebhookDelivered(kind="request.completed"):
            return DeliveryStatus(event.run, True, 0, False)
        case WebhookFailed(kind="request.completed"):
            return DeliveryStatus(event.run, False, event.after_attempt, True)
        case WebhookRedeliveryRequested(kind="request.completed"):
            return DeliveryStatus(event.run, False, event.after_attempt, False)
        case _:
            return None
