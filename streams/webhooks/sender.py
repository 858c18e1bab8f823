"""One delivery attempt: the POST and the event of its result."""

import time
from collections.abc import Sequence

import structlog

from infra.observability import metrics
from infra.outbound.client import OutboundClient, parse_retry_after
from infra.outbound.reasons import ForbiddenUrl, OutboundError
from streams.events.base import utc_now
from streams.events.trace_context import HEADER as TRACEPARENT
from streams.events.trace_context import trace_id_of, traceparent_of
from streams.events.webhooks import WebhookAttempted
from streams.webhooks.delivery import Delivery, Origin
from streams.webhooks.schedule import Outcome, Schedule
from streams.webhooks.signature import owner_keys, signed_headers

logger = structlog.get_logger(__name__)

ANSWER_TIMEOUT = 15.0
"""Timeout of a POST in seconds; Standard Webhooks recommends 15 to 30."""


class Sender:
    """Posts messages, signed with their owner's key of each of ``keys`` (unsigned without any)."""

    def __init__(
        self,
        client: OutboundClient,
        keys: Sequence[bytes],
        schedule: Schedule,
        answer_timeout: float = ANSWER_TIMEOUT,
    ) -> None:
        self._client = client
        self._keys = keys
        self._schedule = schedule
        self.answer_timeout = answer_timeout

    async def attempt(self, delivery: Delivery) -> tuple[WebhookAttempted, Outcome]:
        """Make the next delivery attempt of a message; the caller appends the event."""
        origin = delivery.origin
        assert origin is not None
        number = delivery.made + 1
        event_id = WebhookAttempted.id_of(origin.request_id, f"{delivery.webhook_id}/{number}")
        context = traceparent_of(origin.request_id, origin.traceparent, event_id)
        outcome = await self._post(delivery.webhook_id, origin, context)
        result = "confirmed" if outcome.reason is None else metrics.by_class(outcome.reason)
        metrics.WEBHOOK_ATTEMPTS.labels(result).inc()
        metrics.WEBHOOK_SECONDS.observe(outcome.milliseconds / 1000)
        now = utc_now()
        after = delivery.after_attempt
        next_at = None
        if outcome.reason is not None:
            next_at = self._schedule.next_attempt_at(number - after, outcome, now)
        logger.info(
            "webhook attempted",
            request_id=origin.request_id,
            trace_id=trace_id_of(origin.request_id, origin.traceparent),
            webhook_id=delivery.webhook_id,
            attempt=number,
            status=outcome.status,
            reason=outcome.reason,
        )
        event = WebhookAttempted(
            request_id=origin.request_id,
            time=now,
            webhook_id=delivery.webhook_id,
            kind=origin.kind,
            run=origin.run,
            attempt=number,
            status=outcome.status,
            milliseconds=outcome.milliseconds,
            reason=outcome.reason,
            next_attempt_at=next_at,
            last=outcome.reason is not None and next_at is None,
            after_attempt=after,
            traceparent=origin.traceparent,
        )
        return event, outcome

    async def _post(self, webhook_id: str, origin: Origin, traceparent: str) -> Outcome:
        body = origin.body.encode()
        headers = signed_headers(owner_keys(self._keys, origin.owner), webhook_id, utc_now(), body)
        headers |= {"content-type": "application/json", TRACEPARENT: traceparent}
        started = time.monotonic()
        try:
            # A request has one receiver: its slow name servers hold up look-ups of this request only.
            response = await self._client.post(
                origin.url, body, headers, timeout=self.answer_timeout, owner=origin.request_id
            )
        except OutboundError as error:
            return Outcome(
                None, str(error.reason), _milliseconds_since(started), hopeless=isinstance(error, ForbiddenUrl)
            )
        retry_after = response.headers.get("Retry-After")
        return Outcome(
            response.status,
            None if 200 <= response.status < 300 else f"http_{response.status}",
            _milliseconds_since(started),
            retry_after=parse_retry_after(retry_after, utc_now()) if retry_after else None,
        )


def _milliseconds_since(started: float) -> int:
    return round((time.monotonic() - started) * 1000)
