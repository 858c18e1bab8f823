"""Final result of a webhook message, derived from its last delivery attempt."""

from streams.events.webhooks import WebhookAttempted, WebhookDelivered, WebhookFailed


def outcome_of(event: WebhookAttempted) -> WebhookDelivered | WebhookFailed | None:
    """`WebhookDelivered` or `WebhookFailed`, if this attempt is the last; the same for the same attempt."""
    common = event.model_dump(include={"request_id", "webhook_id", "kind", "run", "after_attempt", "traceparent"})
    if event.reason is None:
        return WebhookDelivered(**common, time=event.time, attempts=event.attempt)
    if event.last:
        return WebhookFailed(**common, time=event.time, attempts=event.attempt, reason=event.reason)
    return None
