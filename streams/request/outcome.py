"""What an attempt comes to: said by an event of its own, which always follows from the attempt's."""

from streams.events.webhooks import WebhookAttempted, WebhookDelivered, WebhookFailed


def outcome_of(event: WebhookAttempted) -> WebhookDelivered | WebhookFailed | None:
    """The event that ends a message's attempts, if this one does; the same each time it is asked for."""
    said = event.model_dump(include={"request_id", "webhook_id", "kind", "run", "after_attempt", "traceparent"})
    if event.reason is None:
        return WebhookDelivered(**said, time=event.time, attempts=event.attempt)
    if event.last:
        return WebhookFailed(**said, time=event.time, attempts=event.attempt, reason=event.reason)
    return None
