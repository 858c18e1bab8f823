"""Statistics of an owner's finished requests over the last 30 days, by day."""

import asyncio
from collections import Counter
from datetime import date, datetime, timedelta
from http import HTTPStatus

from aiohttp import web
from pydantic import Field

from api.context import CONTEXT
from api.contract.routes import Response, Route
from api.http.api_keys import OWNER
from api.http.paging import json_response
from api.http.problems import ANSWER_SECONDS, unavailable_on
from api.requests.failures import FailureGroup, groups_of
from infra.cassandra.session import CassandraUnavailableError
from streams.events.base import JsonModel, utc_now
from streams.projections.history.queries import HistoryQueries, RequestSums

DAYS = 30
DAYS_AT_ONCE = 6


class StatsSums(JsonModel):
    """Sums over finished requests; those that expired or were deleted count, too."""

    requests: int = Field(0, description="completed or cancelled requests")
    images: int = Field(0, description="images with a result")
    failed: int = 0
    input_bytes: int = Field(0, description="downloaded bytes of images that succeeded")
    output_bytes: int = 0
    saved_bytes: int = Field(0, description="`inputBytes` less `outputBytes`")


class DayStats(StatsSums):
    """Sums over the finished requests that were created on one day."""

    day: date = Field(description="in UTC")


class Stats(StatsSums):
    """Sums over the last 30 days, today included."""

    failures: list[FailureGroup] = Field(description="failed images of completed requests by reason")
    days: list[DayStats] = Field(description="each day, oldest first")


async def show_stats(request: web.Request) -> web.Response:
    """``GET /api/stats``."""
    reason = "cannot add up the statistics: Cassandra is unavailable, or did not answer in time"
    with unavailable_on(CassandraUnavailableError, TimeoutError, reason=reason):
        async with asyncio.timeout(ANSWER_SECONDS):
            return json_response(await stats_of(request.app[CONTEXT].history, request[OWNER], utc_now()))


async def stats_of(history: HistoryQueries, owner: str, now: datetime) -> Stats:
    """The statistics of ``DAYS`` days that end with that of ``now``. Raises CassandraUnavailableError."""
    slots = asyncio.Semaphore(DAYS_AT_ONCE)
    reasons: Counter[str] = Counter()

    async def sums_on(day: date) -> DayStats:
        totals: Counter[str] = Counter()
        async with slots:
            async for rows in history.sums_of(owner, day):
                for row in rows:
                    totals.update(_counted(row))
                    reasons.update(row.failures or {})
        return DayStats(day=day, **totals)

    first = now.date() - timedelta(days=DAYS - 1)
    days = await asyncio.gather(*(sums_on(first + timedelta(days=number)) for number in range(DAYS)))
    totals = {name: sum(getattr(day, name) for day in days) for name in StatsSums.model_fields}
    return Stats(**totals, failures=groups_of(reasons), days=days)


def _counted(row: RequestSums) -> dict[str, int]:
    return {
        "requests": 1,
        "images": row.succeeded + row.failed,
        "failed": row.failed,
        "input_bytes": row.input_bytes,
        "output_bytes": row.output_bytes,
        "saved_bytes": row.input_bytes - row.output_bytes,
    }


def routes() -> list[Route]:
    return [
        Route(
            "GET",
            "/api/stats",
            show_stats,
            tag="Requests",
            summary="Add up the last 30 days",
            description="Images, failures and bytes saved of the finished requests of the API key, by day.",
            responses={HTTPStatus.OK: Response("The statistics", {"application/json": Stats})},
            problems={
                HTTPStatus.SERVICE_UNAVAILABLE: "Cassandra is unavailable or slow; retry after `Retry-After` seconds."
            },
        )
    ]
