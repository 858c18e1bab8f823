"""Events about webhook messages and their delivery."""

from typing import Annotated

from pydantic import Field

from streams.events.base import Count, Event, Run, Time, WebhookId, WebhookKind


class _WebhookEvent(Event):
    """An event about a webhook message; ``webhook_id`` is the same at all delivery attempts."""

    topic = "webhooks"

    webhook_id: WebhookId
    kind: WebhookKind = Field("request.completed", description="type of the message")
    run: Run = Field(0, description="the run of the request that the message is about")

    @property
    def occurrence(self) -> str:
        return self.webhook_id


class WebhookAttempted(_WebhookEvent):
    """A delivery attempt, whatever its result."""

    attempt: Annotated[int, Field(ge=1, lt=2**31)]
    status: Annotated[int, Field(ge=0, lt=1000)] | None = Field(
        None, description="HTTP status, if there was a response"
    )
    milliseconds: Count
    reason: str | None = Field(None, description="reason of failure; absent on success")
    next_attempt_at: Time | None = Field(None, description="due time of the next attempt")
    last: bool = Field(False, description="whether it failed and is the last attempt")
    after_attempt: Count = Field(
        0, description="number of attempts before the manual redelivery that it belongs to; 0: none"
    )

    @property
    def occurrence(self) -> str:
        return f"{self.webhook_id}/{self.attempt}"


class _WebhookOutcome(_WebhookEvent):
    attempts: Count
    after_attempt: Count = Field(0, description="as in WebhookAttempted: each manual redelivery has its own outcome")

    @property
    def occurrence(self) -> str:
        return f"{self.webhook_id}/{self.after_attempt}" if self.after_attempt else self.webhook_id


class WebhookDelivered(_WebhookOutcome):
    """The receiver confirmed."""


class WebhookFailed(_WebhookOutcome):
    """The last delivery attempt failed; only a manual redelivery leads to further ones."""

    reason: str


class WebhookRedeliveryRequested(_WebhookEvent):
    """A client requested a manual redelivery: at once, and with a fresh schedule."""

    after_attempt: Count = Field(
        description="number of delivery attempts before it: two requests after the same attempt are one"
    )

    @property
    def occurrence(self) -> str:
        return f"{self.webhook_id}/{self.after_attempt}"
