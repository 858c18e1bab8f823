"""Webhook deliveries of a request, and their manual redelivery."""

import asyncio
from http import HTTPStatus

from aiohttp import web
from pydantic import AwareDatetime, Field

from api.context import CONTEXT
from api.contract.routes import Response, Route
from api.http.paging import json_response
from api.http.problems import Problem, ProblemCode, answered_in_time, unavailable_on
from api.requests.commands import append_command
from api.requests.status import status_of
from infra.cassandra.session import CassandraUnavailableError
from infra.settings import origin_of
from streams.events.base import JsonModel, WebhookKind
from streams.events.webhooks import WebhookRedeliveryRequested
from streams.request.webhook import WebhookState
from streams.webhooks.delivery import Delivery, DeliveryState
from streams.webhooks.message import completion_id

MAX_RUNS_SHOWN = 20


class WebhookAttemptShown(JsonModel):
    """One delivery attempt: a POST to the receiver."""

    attempt: int
    time: AwareDatetime
    status: int | None = Field(description="HTTP status; null without a response")
    milliseconds: int
    reason: str | None = Field(description="reason of the failure; null on success")


class WebhookMessageShown(JsonModel):
    """One webhook message: there is one per completion of the request."""

    webhook_id: str = Field(description="`webhook-id` of every delivery attempt")
    type: WebhookKind
    run: int = Field(description="run that was completed: 0, then incremented by each retry")
    url: str
    state: DeliveryState
    next_attempt_at: AwareDatetime | None = Field(description="null if no further delivery attempt is scheduled")
    attempts: list[WebhookAttemptShown]


class WebhookShown(JsonModel):
    """The webhook of a request: its state, messages and delivery attempts."""

    request_id: str
    webhook: WebhookState | None = Field(description="as in the status object; null without a receiver")
    messages: list[WebhookMessageShown] = Field(description="newest first; empty until the request is completed")


class RedeliveryAccepted(JsonModel):
    """A manual redelivery was accepted."""

    message: str
    request_id: str
    webhook_id: str


async def get_webhook(request: web.Request) -> web.Response:
    """``GET /api/requests/{id}/webhook``: the webhook messages of a request and their delivery attempts."""
    status = await status_of(request)
    shown = WebhookShown(
        request_id=status.request_id,
        webhook=status.webhook,
        messages=[
            _shown(delivery, request.app[CONTEXT].settings.webhook_url)
            for delivery in await _deliveries(request, status.request_id)
        ],
    )
    return json_response(shown)


@answered_in_time()
async def redeliver(request: web.Request) -> web.Response:
    """``POST /api/requests/{id}/webhook/redeliver``: send the last message again, with the same id.

    Idempotent until the next delivery attempt. A message that waits for a scheduled attempt is sent at once.
    409 without a message: the request is not completed or has no receiver.
    """
    status = await status_of(request)
    deliveries = await _deliveries(request, status.request_id)
    if not deliveries:
        raise Problem(ProblemCode.NO_WEBHOOK, "no webhook to redeliver: no receiver, or not completed")
    delivery = deliveries[0]
    assert delivery.origin is not None
    event = WebhookRedeliveryRequested(
        request_id=status.request_id,
        webhook_id=delivery.webhook_id,
        kind=delivery.origin.kind,
        run=delivery.origin.run,
        after_attempt=delivery.made,
        traceparent=delivery.origin.traceparent,
    )
    await append_command(request.app[CONTEXT], event, "redelivery")
    accepted = RedeliveryAccepted(
        message="The webhook is being sent again.", request_id=status.request_id, webhook_id=delivery.webhook_id
    )
    return json_response(
        accepted, status=HTTPStatus.ACCEPTED, headers={"Location": f"/api/requests/{status.request_id}/webhook"}
    )


async def _deliveries(request: web.Request, request_id: str) -> list[Delivery]:
    """The completion messages of a request, newest first."""
    context = request.app[CONTEXT]
    with unavailable_on(
        CassandraUnavailableError, reason="cannot read the webhook deliveries: Cassandra is unavailable"
    ):
        completion = (await context.history.lifecycle(request_id, retry_for=0)).completion
        if completion is None:
            return []
        runs = range(completion.run, max(-1, completion.run - MAX_RUNS_SHOWN), -1)
        loaded = await asyncio.gather(*(context.deliveries.load(completion_id(request_id, number)) for number in runs))
    return [delivery for delivery in loaded if delivery.origin is not None]


def _shown(delivery: Delivery, default_url: str | None) -> WebhookMessageShown:
    """``default_url``: the operator's receiver, whose path may contain a token, is shown as its host."""
    assert delivery.origin is not None
    return WebhookMessageShown(
        webhook_id=delivery.webhook_id,
        type=delivery.origin.kind,
        run=delivery.origin.run,
        url=origin_of(delivery.origin.url) if delivery.origin.url == default_url else delivery.origin.url,
        state=delivery.state,
        next_attempt_at=delivery.due,
        attempts=[
            WebhookAttemptShown(
                attempt=attempt.number,
                time=attempt.at,
                status=attempt.status,
                milliseconds=attempt.milliseconds,
                reason=attempt.reason,
            )
            for attempt in delivery.attempts
        ],
    )


def routes() -> list[Route]:
    return [
        Route(
            "GET",
            "/api/requests/{request_id}/webhook",
            get_webhook,
            tag="Webhooks",
            summary="Get the webhook deliveries of a request",
            description="The webhook messages and all their delivery attempts.",
            responses={HTTPStatus.OK: Response("The messages", {"application/json": WebhookShown})},
        ),
        Route(
            "POST",
            "/api/requests/{request_id}/webhook/redeliver",
            redeliver,
            tag="Webhooks",
            summary="Redeliver the webhook of a request",
            description="Sends the last message again, with the same `webhook-id`. Idempotent until the next delivery"
            " attempt; a message that waits for a scheduled attempt is sent at once.",
            responses={
                HTTPStatus.ACCEPTED: Response(
                    "The redelivery was accepted",
                    {"application/json": RedeliveryAccepted},
                    {"Location": "URL of the webhook deliveries"},
                )
            },
            problems={HTTPStatus.CONFLICT: "No webhook to redeliver: no receiver, or the request is not completed."},
        ),
    ]
