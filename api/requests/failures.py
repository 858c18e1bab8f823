"""Failures of a request, grouped by their reason."""

import asyncio
from collections import Counter
from http import HTTPStatus

from aiohttp import web
from pydantic import Field

from api.context import CONTEXT, Context
from api.contract.routes import Response, Route
from api.http.paging import json_response
from api.http.problems import answered_in_time, unavailable_on
from api.requests.images import bucket_filter
from api.requests.status import status_of
from infra.cassandra.session import CassandraUnavailableError
from streams.events.base import JsonModel
from streams.request.failures import failure_of
from streams.request.status import Status
from streams.request.tally import chunk_count

BUCKETS_AT_ONCE = 16


class FailureGroup(JsonModel):
    """Failed images of one reason."""

    reason: str = Field(description="stable reason code")
    images: int
    title: str = Field(description="the reason in words")
    advice: str = Field(description="what to do about it")


class Failures(JsonModel):
    """The failed images of a request by reason, the most frequent one first."""

    failed: int
    reasons: list[FailureGroup]


@answered_in_time()
async def list_failures(request: web.Request) -> web.Response:
    """``GET /api/requests/{id}/failures``."""
    status = await status_of(request)
    counts = await count_failures(request.app[CONTEXT], status)
    return json_response(Failures(failed=counts.total(), reasons=groups_of(counts)))


def groups_of(counts: Counter[str]) -> list[FailureGroup]:
    """Failed images by reason in words, the most frequent one first."""
    return [
        FailureGroup(reason=reason, images=images, **failure_of(reason)._asdict())
        for reason, images in sorted(counts.items(), key=lambda group: (-group[1], group[0]))
    ]


async def count_failures(context: Context, status: Status) -> Counter[str]:
    """Failed images by reason, as the list of images has them. Raises Problem (503) if Cassandra is unavailable."""
    may_match = bucket_filter("failed", context, status)
    buckets = [bucket for bucket in range(chunk_count(status.total)) if may_match(bucket)]
    counts: Counter[str] = Counter()
    # While a run is under way, what failed in an earlier one is waiting again.
    first_run = status.run if status.status == "processing" else 0
    with unavailable_on(CassandraUnavailableError, reason="cannot read the failures: Cassandra is unavailable"):
        for start in range(0, len(buckets), BUCKETS_AT_ONCE):
            reads = (
                context.history.failures(status.request_id, bucket, retry_for=0)
                for bucket in buckets[start : start + BUCKETS_AT_ONCE]
            )
            for found in await asyncio.gather(*reads):
                counts.update(reason for run, reason in found if run >= first_run)
    return counts


def routes() -> list[Route]:
    return [
        Route(
            "GET",
            "/api/requests/{request_id}/failures",
            list_failures,
            tag="Requests",
            summary="Count the failures of a request by reason",
            description="Each reason with what to do about it; `POST …/retry?reason=` retries one of them.",
            responses={HTTPStatus.OK: Response("The failures", {"application/json": Failures})},
        )
    ]
