"""Stopping a request, and running its failed images again. Each is one event: it is there, or it is not."""

from datetime import timedelta
from http import HTTPStatus

import structlog
from aiohttp import web
from aiokafka.errors import KafkaError

from api.context import CONTEXT, Context
from api.models import Accepted
from api.paging import json_answer
from api.problems import Problem, expired, unavailable
from api.routes import Answer, Route
from api.status import REQUEST_ID, REQUEST_PROBLEMS, status_of
from api.trace_header import TRACEPARENT, context_of
from infra.settings import Settings
from streams.events import RequestCancelled, RequestRetried, utc_now
from streams.progress.view import StaleViewError
from streams.request.status import Status

log = structlog.get_logger(__name__)

FRESH_SECONDS = 5.0
MOST_RUNS = 1000
A_MOMENT = timedelta(milliseconds=1)
WRITTEN_WITHIN = timedelta(seconds=60)  # an event is on the log, or refused; and clocks may differ a little


async def cancel(request: web.Request) -> web.Response:
    """``POST /api/requests/{id}/cancel``: no more images of it are fetched. Again, it changes nothing."""
    context = request.app[CONTEXT]
    status = await _fresh_status(request)
    if status.status == "processing":
        if status.succeeded + status.failed >= status.total:
            raise Problem(HTTPStatus.CONFLICT, "nothing-to-cancel", "every image has its result already")
        cancelled = RequestCancelled(request_id=status.request_id, run=status.run, traceparent=context_of(request))
        await _append(context, cancelled)
        log.info("request cancelled", run=cancelled.run, **cancelled.log_fields())
        status = await status_of(request)
    if status.status == "completed":
        raise Problem(HTTPStatus.CONFLICT, "already-completed", "the request is completed")
    if status.status == "expired":
        raise expired()
    return json_answer(status, headers={"Cache-Control": "no-store"})


async def retry(request: web.Request) -> web.Response:
    """``POST /api/requests/{id}/retry``: what has failed, or was never done, is processed again."""
    context = request.app[CONTEXT]
    status = await _fresh_status(request)
    if status.status == "processing":
        raise Problem(HTTPStatus.CONFLICT, "still-processing", "the request is being processed")
    if status.status == "expired" or _is_about_to_expire(status, context.settings):
        raise expired()
    if status.status == "completed" and status.failed == 0:
        raise Problem(HTTPStatus.CONFLICT, "nothing-failed", "no image of the request has failed")
    if status.run >= MOST_RUNS:
        raise Problem(HTTPStatus.CONFLICT, "too-many-retries", f"it was retried {status.run} times already")
    retried = RequestRetried(
        request_id=status.request_id,
        run=status.run + 1,
        created_at=status.created_at,
        # Later than all that was told of it, whoever's clock is slow: the history goes by it.
        time=max(utc_now(), status.updated_at + A_MOMENT),
        traceparent=context_of(request),
    )
    await _append(context, retried)
    log.info("request retried", run=retried.run, **retried.log_fields())
    return json_answer(
        Accepted(
            message="The images that have not succeeded are being processed again.",
            request_id=status.request_id,
        ),
        status=HTTPStatus.ACCEPTED,
        headers={"Location": f"/api/status/{status.request_id}"},
    )


def _is_about_to_expire(status: Status, settings: Settings) -> bool:
    """Whether the files may be removed while a retry is being written, which would have nothing to add to then."""
    if settings.retention_days is None:
        return False
    kept = timedelta(days=settings.retention_days)
    ended_at = status.completed_at or status.updated_at
    return utc_now() > ended_at + kept - min(WRITTEN_WITHIN, kept / 4)


async def _fresh_status(request: web.Request) -> Status:
    """The status after all that Kafka has by now: what another process has accepted is known here."""
    try:
        await request.app[CONTEXT].view.catch_up(FRESH_SECONDS)
    except StaleViewError:
        raise unavailable("the status is not known just now") from None
    return await status_of(request)


async def _append(context: Context, event: RequestCancelled | RequestRetried) -> None:
    """Write the event and wait until this process knows it, so that whoever asks next is answered accordingly."""
    try:
        written = await context.event_log.append(event)
    except KafkaError as error:
        log.warning("command not written", request_id=event.request_id, error=str(error))
        raise unavailable("Kafka doesn't take the command") from None
    try:
        await context.view.reached(written, FRESH_SECONDS)
    except StaleViewError:
        raise unavailable("the command was accepted, but its effect is not known just now") from None


def routes() -> list[Route]:
    return [
        Route(
            "POST",
            "/api/requests/{request_id}/cancel",
            cancel,
            tag="Requests",
            summary="Stop the rest of a request",
            description="No more of its images are fetched, and its status is `cancelled`. Again, it changes nothing.",
            parameters=(REQUEST_ID, TRACEPARENT),
            answers={HTTPStatus.OK: Answer("It is cancelled", {"application/json": Status})},
            problems={
                **REQUEST_PROBLEMS,
                HTTPStatus.CONFLICT: "Every image has its result already.",
                HTTPStatus.GONE: "The request's files had their time and were removed.",
            },
        ),
        Route(
            "POST",
            "/api/requests/{request_id}/retry",
            retry,
            tag="Requests",
            summary="Process the failed images again",
            description="Also those that a cancelled request never came to. The request completes again, with a new"
            " output CSV and a new webhook.",
            parameters=(REQUEST_ID, TRACEPARENT),
            answers={
                HTTPStatus.ACCEPTED: Answer(
                    "The images are being processed", {"application/json": Accepted}, {"Location": "its status"}
                )
            },
            problems={
                **REQUEST_PROBLEMS,
                HTTPStatus.CONFLICT: "It is being processed, or no image of it has failed.",
                HTTPStatus.GONE: "The request's files had their time and were removed: upload its CSV again.",
            },
        ),
    ]
