"""Telling the receiver that a request is complete, in the way of Standard Webhooks 1.0.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import asyncio
import base64
import hashlib
import hmac
import time
from datetime import UTC, datetime
from uuid import uuid5

import structlog

from infra.outbound import OutboundClient, OutboundError
from infra.settings import parse_webhook_secret
from streams.event_log import EventLog
from streams.events import NAMESPACE, RequestCompleted, WebhookAttempted, WebhookDelivered, WebhookFailed
from streams.projections.history import History
from streams.status import WebhookMessage, completed_status

log = structlog.get_logger(__name__)

ANSWER_TIMEOUT = 15.0
PAUSES = (0.0, 1.0, 5.0, 15.0)  # seconds before each attempt
GONE = 410


def sign(key: bytes, webhook_id: str, timestamp: int, body: bytes) -> str:
    """The ``webhook-signature`` of a delivery: version 1, HMAC-SHA256 over ``id.timestamp.body``."""
    signed = b"%s.%d.%s" % (webhook_id.encode(), timestamp, body)
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def webhook_id(event: RequestCompleted) -> str:
    """The id of the message about one completion, the same at every attempt."""
    return f"msg_{uuid5(NAMESPACE, f'webhook/{event.id}').hex}"


def message(event: RequestCompleted) -> bytes:
    """The body: what happened, when, and the status object."""
    body = WebhookMessage(type="request.completed", timestamp=event.time, data=completed_status(event, "pending"))
    return body.model_dump_json(by_alias=True).encode()


class Webhooks:
    """Posts to receivers and writes down what came of it."""

    def __init__(self, client: OutboundClient, event_log: EventLog, history: History, secret: str | None) -> None:
        self._client = client
        self._log = event_log
        self._history = history
        self._key = parse_webhook_secret(secret) if secret else None

    async def deliver(self, event: RequestCompleted) -> None:
        """Tell the request's receiver, if it has one and doesn't know yet."""
        if event.webhook_url is None or await self._history.webhook_is_settled(event.request_id, event.run):
            return
        body, message_id = message(event), webhook_id(event)
        reason = "no attempt made"
        for attempt, pause in enumerate(PAUSES, start=1):
            await asyncio.sleep(pause)
            outcome = await self._attempt(event, message_id, attempt, body)
            await self._log.append(outcome)
            if outcome.reason is None:
                await self._log.append(
                    WebhookDelivered(
                        request_id=event.request_id, run=event.run, webhook_id=message_id, attempts=attempt
                    )
                )
                return
            reason = outcome.reason
            if outcome.status == GONE:
                break
        await self._log.append(
            WebhookFailed(
                request_id=event.request_id,
                run=event.run,
                webhook_id=message_id,
                attempts=attempt,
                reason=reason,
            )
        )

    async def _attempt(self, event: RequestCompleted, message_id: str, attempt: int, body: bytes) -> WebhookAttempted:
        timestamp = int(datetime.now(UTC).timestamp())
        headers = {
            "content-type": "application/json",
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
        }
        if self._key is not None:
            headers["webhook-signature"] = sign(self._key, message_id, timestamp, body)
        started = time.monotonic()
        status: int | None = None
        reason: str | None = None
        try:
            assert event.webhook_url is not None
            response = await self._client.post(event.webhook_url, body, headers, timeout=ANSWER_TIMEOUT)
        except OutboundError as error:
            reason = str(error.reason)
        else:
            status = response.status
            reason = None if 200 <= status < 300 else f"http_{status}"
        log.info("webhook attempted", request_id=event.request_id, attempt=attempt, status=status, reason=reason)
        return WebhookAttempted(
            request_id=event.request_id,
            run=event.run,
            webhook_id=message_id,
            attempt=attempt,
            status=status,
            milliseconds=round((time.monotonic() - started) * 1000),
            reason=reason,
        )
