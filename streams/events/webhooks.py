"""Events about webhook messages and their delivery."""

from typing import Annotated

from pydantic import Field

from streams.events.base import Count, Event, Run, Time, WebhookId, WebhookKind


class _WebhookEvent(Event):
    """An event about telling a receiver something; ``webhook_id`` is the message's, stable over all attempts."""

    topic = "webhooks"

    webhook_id: WebhookId
    kind: WebhookKind = Field("request.completed", description="type of the message")
    run: Run = Field(0, description="the run of the request that the message is about")

    @property
    def occurrence(self) -> str:
        return self.webhook_id


class WebhookAttempted(_WebhookEvent):
    """One POST was made, whatever came of it."""

    attempt: Annotated[int, Field(ge=1, lt=2**31)]
    status: Annotated[int, Field(ge=0, lt=1000)] | None = Field(None, description="HTTP status, if there was an answer")
    milliseconds: Count
    reason: str | None = Field(None, description="why it is no success; absent on success")
    next_attempt_at: Time | None = Field(None, description="when the next attempt is due, if there is to be one")
    last: bool = Field(False, description="it is no success, and no further attempt will be made")
    after_attempt: Count = Field(0, description="number of attempts before the redelivery that it belongs to, if any")

    @property
    def occurrence(self) -> str:
        return f"{self.webhook_id}/{self.attempt}"


class _WebhookOutcome(_WebhookEvent):
    attempts: Count
    after_attempt: Count = Field(0, description="as in WebhookAttempted: each redelivery has an outcome of its own")

    @property
    def occurrence(self) -> str:
        return f"{self.webhook_id}/{self.after_attempt}" if self.after_attempt else self.webhook_id


class WebhookDelivered(_WebhookOutcome):
    """The receiver confirmed."""


class WebhookFailed(_WebhookOutcome):
    """No further attempt will be made, except by a manual redelivery."""

    reason: str


class WebhookRedeliveryRequested(_WebhookEvent):
    """Somebody wants a message sent again, at once and with the whole schedule of attempts before it."""

    after_attempt: Count = Field(description="number of attempts made before: asked for twice, it is the same wish")

    @property
    def occurrence(self) -> str:
        return f"{self.webhook_id}/{self.after_attempt}"
