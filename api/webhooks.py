"""What became of telling a request's receiver, and telling it again."""

import asyncio
from http import HTTPStatus

import structlog
from aiohttp import web
from aiokafka.errors import KafkaError
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from api.context import CONTEXT
from api.paging import json_answer
from api.problems import Problem, unavailable
from api.routes import Answer, Route
from api.status import REQUEST_ID, REQUEST_PROBLEMS, status_of
from infra.cassandra.session import CassandraUnavailableError
from streams.events import WebhookKind, WebhookRedeliveryRequested
from streams.projections.webhooks.delivery import Delivery, DeliveryState
from streams.projections.webhooks.message import completion_id
from streams.request.webhook import WebhookState

log = structlog.get_logger(__name__)

RUNS_SHOWN = 20


class _Shown(BaseModel):
    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)


class WebhookAttemptShown(_Shown):
    """One POST to the receiver."""

    attempt: int
    time: AwareDatetime
    status: int | None = Field(description="HTTP status, if there was an answer")
    milliseconds: int
    reason: str | None = Field(description="why it is no success; null on success")


class WebhookMessageShown(_Shown):
    """One message to the receiver: one for each time that the request was completed."""

    webhook_id: str = Field(description="`webhook-id` of every attempt")
    type: WebhookKind
    run: int = Field(description="0, and one more after each retry of the failed images")
    url: str
    state: DeliveryState
    next_attempt_at: AwareDatetime | None = Field(description="null if no further attempt is to be made")
    attempts: list[WebhookAttemptShown]


class WebhookShown(_Shown):
    """Everything about a request's webhook."""

    request_id: str
    webhook: WebhookState | None = Field(description="as in the status object; null without a receiver")
    messages: list[WebhookMessageShown] = Field(description="newest first; empty until the request is completed")


class RedeliveryAccepted(_Shown):
    """The answer to a wish for a redelivery."""

    message: str
    request_id: str
    webhook_id: str


async def get_webhook(request: web.Request) -> web.Response:
    """``GET /api/requests/{id}/webhook``: the messages about a request and every attempt at them."""
    status = await status_of(request)
    shown = WebhookShown(
        request_id=status.request_id,
        webhook=status.webhook,
        messages=[_shown(delivery) for delivery in await _deliveries(request, status.request_id)],
    )
    return json_answer(shown)


async def redeliver(request: web.Request) -> web.Response:
    """``POST /api/requests/{id}/webhook/redeliver``: send the last message again, with the same id.

    Asked for twice before it is sent, it is sent once. A message that still waits for its next attempt is sent
    at once. 409 while there is no message, because the request is not completed or has no receiver.
    """
    status = await status_of(request)
    deliveries = await _deliveries(request, status.request_id)
    if not deliveries:
        raise Problem(HTTPStatus.CONFLICT, "no-webhook", "there is no webhook to send: no receiver, or not completed")
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
    try:
        await request.app[CONTEXT].event_log.append(event)
    except KafkaError as error:
        log.warning("redelivery not written", request_id=status.request_id, error=str(error))
        raise unavailable("Kafka doesn't take the redelivery") from None
    accepted = RedeliveryAccepted(
        message="The webhook is being sent again.", request_id=status.request_id, webhook_id=delivery.webhook_id
    )
    return json_answer(
        accepted, status=HTTPStatus.ACCEPTED, headers={"Location": f"/api/requests/{status.request_id}/webhook"}
    )


async def _deliveries(request: web.Request, request_id: str) -> list[Delivery]:
    """The messages about a request's completions, newest first."""
    context = request.app[CONTEXT]
    try:
        completion = (await context.history.lifecycle(request_id, patience=0)).completion
        if completion is None:
            return []
        runs = range(completion.run, max(-1, completion.run - RUNS_SHOWN), -1)
        loaded = await asyncio.gather(*(context.deliveries.load(completion_id(request_id, number)) for number in runs))
    except CassandraUnavailableError:
        raise unavailable("the history doesn't answer") from None
    return [delivery for delivery in loaded if delivery.origin is not None]


def _shown(delivery: Delivery) -> WebhookMessageShown:
    assert delivery.origin is not None
    return WebhookMessageShown(
        webhook_id=delivery.webhook_id,
        type=delivery.origin.kind,
        run=delivery.origin.run,
        url=delivery.origin.url,
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
            summary="Tell what became of a request's webhook",
            description="The messages to its receiver, and every attempt at them.",
            parameters=(REQUEST_ID,),
            answers={HTTPStatus.OK: Answer("The messages", {"application/json": WebhookShown})},
            problems=REQUEST_PROBLEMS,
        ),
        Route(
            "POST",
            "/api/requests/{request_id}/webhook/redeliver",
            redeliver,
            tag="Webhooks",
            summary="Send a request's webhook again",
            description="The last message, with the same `webhook-id`. Asked for twice before it is sent, it is sent"
            " once; one that still waits for its next attempt is sent at once.",
            parameters=(REQUEST_ID,),
            answers={
                HTTPStatus.ACCEPTED: Answer(
                    "It is being sent", {"application/json": RedeliveryAccepted}, {"Location": "what becomes of it"}
                )
            },
            problems={
                **REQUEST_PROBLEMS,
                HTTPStatus.CONFLICT: "There is nothing to send: no receiver, or the request is not completed.",
            },
        ),
    ]
