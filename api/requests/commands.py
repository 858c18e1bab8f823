"""Cancel, retry and delete commands. Each appends one event, so it takes effect completely or not at all."""

from datetime import datetime, timedelta
from http import HTTPStatus

import structlog
from aiohttp import web
from aiokafka.errors import KafkaError
from aiokafka.structs import RecordMetadata

from api.context import CONTEXT, Context
from api.contract.models import Accepted
from api.contract.routes import Parameter, Response, Route
from api.http.api_keys import OWNER
from api.http.paging import bad_query, flag_of, json_response
from api.http.problems import Problem, ProblemCode, answered_in_time, expired, unavailable, unavailable_on
from api.http.quotas import QUOTA
from api.http.trace_header import TRACEPARENT, context_of
from api.requests.failures import count_failures
from api.requests.status import status_of
from infra.settings import Settings
from streams.events.base import Event, ReasonCode, utc_now
from streams.events.requests import RequestCancelled, RequestExpired, RequestForgotten, RequestRetried
from streams.progress.view import StaleViewError
from streams.request.failures import is_reason
from streams.request.lifecycle import Phase
from streams.request.status import Status

logger = structlog.get_logger(__name__)

FRESH_SECONDS = 5.0
MAX_RUNS = 1000
CLOCK_TICK = timedelta(milliseconds=1)
EXPIRY_MARGIN = timedelta(seconds=60)  # bounds the time to append an event, plus clock skew


@answered_in_time()
async def cancel(request: web.Request) -> web.Response:
    """``POST /api/requests/{id}/cancel``: stop fetching images of the request. Idempotent."""
    context = request.app[CONTEXT]
    status = await _fresh_status(request)
    if status.status == "processing":
        if status.succeeded + status.failed >= status.total:
            raise Problem(ProblemCode.NOTHING_TO_CANCEL, "cannot cancel: every image already has its result")
        cancelled = RequestCancelled(
            request_id=status.request_id,
            run=status.run,
            time=time_after(status),
            traceparent=context_of(request),
        )
        await _append(context, cancelled)
        logger.info("request cancelled", run=cancelled.run, **cancelled.log_fields())
        status = await status_of(request)
    if status.status == "completed":
        raise Problem(ProblemCode.ALREADY_COMPLETED, "cannot cancel: the request is completed")
    if status.status == "expired":
        raise expired()
    return json_response(status, headers={"Cache-Control": "no-store"})


@answered_in_time()
async def retry(request: web.Request) -> web.Response:
    """``POST /api/requests/{id}/retry``: start a new run for all images that have not succeeded."""
    context = request.app[CONTEXT]
    reason = request.query.get("reason") or None
    if reason is not None and not is_reason(reason):
        raise bad_query("reason", "no image can fail for it; docs/limits-and-reasons.md lists the codes")
    status = await _fresh_status(request)
    if status.status == "processing":
        raise Problem(ProblemCode.STILL_PROCESSING, "cannot retry: the request is still processing")
    if status.status == "expired" or _is_about_to_expire(status, context.settings):
        raise expired()
    if status.status == "completed" and status.failed == 0:
        raise Problem(ProblemCode.NOTHING_FAILED, "cannot retry: no image has failed")
    kept = 0
    if reason is not None:
        failures = await count_failures(context, status)
        if not failures[reason]:
            raise Problem(ProblemCode.NOTHING_FAILED, f"cannot retry: no image has failed with {reason}")
        kept = failures.total() - failures[reason]
    if status.run >= MAX_RUNS:
        raise Problem(ProblemCode.TOO_MANY_RETRIES, f"cannot retry: the request was already retried {status.run} times")
    retried = RequestRetried(
        request_id=status.request_id,
        run=status.run + 1,
        created_at=status.created_at,
        reason=reason,
        time=time_after(status),
        traceparent=context_of(request),
    )
    with request.app[QUOTA].spend(request[OWNER], status.total - status.succeeded - kept):
        await _append(context, retried)
        if context.view.was_forestalled(retried):
            raise Problem(ProblemCode.STILL_PROCESSING, "cannot retry: another retry of the request was accepted first")
    logger.info("request retried", run=retried.run, **retried.log_fields())
    return json_response(
        Accepted(
            message=f"{f'The images that failed with {reason}' if reason else 'All images that have not succeeded'}"
            " are processed again.",
            request_id=status.request_id,
        ),
        status=HTTPStatus.ACCEPTED,
        headers={"Location": f"/api/status/{status.request_id}"},
    )


@answered_in_time()
async def delete(request: web.Request) -> web.Response:
    """``DELETE /api/requests/{id}``: expire the request now, and with ``?forget=true`` forget it. Idempotent."""
    forget = flag_of(request, "forget")
    status = await _fresh_status(request)
    if status.status == "processing":
        raise Problem(ProblemCode.STILL_PROCESSING, "cannot delete: the request is still processing; cancel it first")
    if status.status != "expired" or (forget and not status.forgotten):
        of_request = {"request_id": status.request_id, "time": time_after(status), "traceparent": context_of(request)}
        expiry = (
            RequestForgotten.model_validate({**of_request, "created_at": status.created_at})
            if forget
            else RequestExpired.model_validate(of_request)
        )
        await _append(request.app[CONTEXT], expiry)
        logger.info("request deleted", **expiry.log_fields(), forgotten=forget)
        # The history, which has the requests that left the progress table, may take a moment.
        gone = {"status": Phase.EXPIRED, "updated_at": expiry.time, "output_csv_url": None, "output_csv_path": None}
        status = status.model_copy(update=gone | ({"forgotten": True, "webhook": None} if forget else {}))
    return json_response(status, headers={"Cache-Control": "no-store"})


def time_after(status: Status) -> datetime:
    """The time of a new event: after every earlier one of the request, though our clock be behind.

    The history resolves conflicts by event time.
    """
    return max(utc_now(), status.updated_at + CLOCK_TICK)


def _is_about_to_expire(status: Status, settings: Settings) -> bool:
    """Whether the request may expire while the retry is being appended, which would then have no files to add to."""
    if settings.retention_days is None:
        return False
    kept = timedelta(days=settings.retention_days)
    ended_at = status.completed_at or status.updated_at
    return utc_now() > ended_at + kept - min(EXPIRY_MARGIN, kept / 4)


async def _fresh_status(request: web.Request) -> Status:
    """The status after catching up with Kafka, so that it includes commands accepted by other API processes."""
    with unavailable_on(StaleViewError, reason="cannot read the request's status: the progress view lags behind Kafka"):
        await request.app[CONTEXT].view.catch_up(FRESH_SECONDS)
    return await status_of(request)


async def append_command(context: Context, event: Event, name: str = "command") -> RecordMetadata:
    """Append the event of a command; a 503 if Kafka doesn't acknowledge it."""
    try:
        return await context.events.append(event)
    except KafkaError as error:
        logger.warning("appending command failed", command=name, request_id=event.request_id, error=str(error))
        raise unavailable(
            f"Kafka did not acknowledge the {name}: it may take effect once Kafka is back; repeating it is safe"
        ) from None


async def _append(context: Context, event: RequestCancelled | RequestExpired | RequestRetried) -> None:
    """Append the event and wait until this process's view has read it, for read-your-writes consistency."""
    appended = await append_command(context, event)
    with unavailable_on(StaleViewError, reason="the command was accepted, but the progress view lags behind Kafka"):
        await context.view.reached(appended, FRESH_SECONDS)


def routes() -> list[Route]:
    return [
        Route(
            "DELETE",
            "/api/requests/{request_id}",
            delete,
            tag="Requests",
            summary="Delete the files of a request",
            description="Its images and output CSV are deleted, and its status becomes `expired`, as at the end of the"
            " retention time. Final and idempotent. Its results stay in the history, unless `forget` is true: then its"
            " images leave the lists, with their product names and URLs. Its events stay on the Kafka topics.",
            parameters=(
                Parameter("forget", "query", bool, "remove its product names and URLs, too; also once it has expired"),
                TRACEPARENT,
            ),
            responses={HTTPStatus.OK: Response("The request is expired", {"application/json": Status})},
            problems={
                HTTPStatus.UNPROCESSABLE_ENTITY: "`forget` is neither `true` nor `false`.",
                HTTPStatus.CONFLICT: "The request is still processing: cancel it first.",
            },
        ),
        Route(
            "POST",
            "/api/requests/{request_id}/cancel",
            cancel,
            tag="Requests",
            summary="Cancel a request",
            description="No more of its images are fetched, and its status becomes `cancelled`. Idempotent.",
            parameters=(TRACEPARENT,),
            responses={HTTPStatus.OK: Response("The request is cancelled", {"application/json": Status})},
            problems={
                HTTPStatus.CONFLICT: "Every image already has its result.",
                HTTPStatus.GONE: "The request's files have expired and were deleted.",
            },
        ),
        Route(
            "POST",
            "/api/requests/{request_id}/retry",
            retry,
            tag="Requests",
            summary="Retry the failed images",
            description="Includes the images that a cancelled request did not process. The request completes again,"
            " with a new output CSV and a new webhook. With `reason`, images that failed for another one keep their"
            " failure.",
            parameters=(
                Parameter(
                    "reason", "query", ReasonCode, "only the images that failed for this reason", "fetch_timeout"
                ),
                TRACEPARENT,
            ),
            responses={
                HTTPStatus.ACCEPTED: Response(
                    "The retry was accepted", {"application/json": Accepted}, {"Location": "URL of the status"}
                )
            },
            problems={
                HTTPStatus.BAD_REQUEST: "There is no such reason.",
                HTTPStatus.CONFLICT: "The request is still processing, or none of its images has failed.",
                HTTPStatus.GONE: "The request's files have expired and were deleted: upload the CSV again.",
            },
        ),
    ]
