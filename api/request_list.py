"""The requests of whoever asks, newest first."""

import asyncio
from datetime import datetime
from heapq import merge
from http import HTTPStatus
from itertools import islice

from aiohttp import web
from pydantic import TypeAdapter

from api.context import CONTEXT, Context
from api.keys import OWNER
from api.models import RequestPage
from api.paging import PAGE_PROBLEMS, choice_of, cursor_of, cursor_to, json_answer, limit_of, page_parameters
from api.problems import unavailable
from api.routes import Answer, Parameter, Route
from infra.cassandra.session import CassandraUnavailableError
from streams.events import Time
from streams.progress.view import StaleViewError
from streams.projections.history import NEWEST_REQUEST
from streams.request.lifecycle import Phase
from streams.request.status import Status

DEFAULT_LIMIT = 50
MOST = 200
FRESH_SECONDS = 5.0

# Requests looked at for one answer, when only those of one status are wanted; what is left the cursor leads to.
MOST_LOOKED_AT = 1000

Place = tuple[datetime, str]
_PLACE: TypeAdapter[tuple[Time, str]] = TypeAdapter(tuple[Time, str])


async def list_requests(request: web.Request) -> web.Response:
    """``GET /api/requests``: a page of status objects; ``?status=`` for those of one status only."""
    context, owner = request.app[CONTEXT], request[OWNER]
    limit = limit_of(request, default=DEFAULT_LIMIT, most=MOST)
    wanted = choice_of(request, "status", tuple(Phase))
    before = cursor_of(request, _PLACE)
    try:
        if before is None:
            await context.view.catch_up(FRESH_SECONDS)  # what was accepted a moment ago is in the list
        return json_answer(await _page(context, owner, before or NEWEST_REQUEST, limit, wanted))
    except (CassandraUnavailableError, StaleViewError):
        raise unavailable("the requests are not known just now") from None


async def _page(context: Context, owner: str, before: Place, limit: int, wanted: str | None) -> RequestPage:
    items: list[Status] = []
    looked_at = 0
    while True:
        places = await _places(context, owner, before, limit + 1)
        statuses = await asyncio.gather(*(context.status(request_id) for _, request_id in places[:limit]))
        for place, status in zip(places, statuses, strict=False):
            before = place
            if status is not None and wanted in (None, status.status):
                items.append(status)
                if len(items) == limit:
                    break
        looked_at += len(statuses)
        more = bool(places) and before != places[-1]
        if len(items) == limit or not more or looked_at >= MOST_LOOKED_AT:
            return RequestPage(items=items, next_cursor=cursor_to(before) if more else None)


async def _places(context: Context, owner: str, before: Place, count: int) -> list[Place]:
    """The next requests after ``before``: the history lacks the newest, the progress table the oldest."""
    under_way = list(islice(context.view.requests_of(owner, before), count))
    recorded: list[Place] = []
    async for place in context.history.requests_of(owner, before):
        recorded.append(place)
        if len(recorded) == count:
            break
    every = dict.fromkeys(merge(under_way, recorded, reverse=True))
    return list(islice(every, count))


def routes() -> list[Route]:
    return [
        Route(
            "GET",
            "/api/requests",
            list_requests,
            tag="Requests",
            summary="List requests",
            description="Those of the key that asks, newest first.",
            parameters=(
                Parameter("status", "query", Phase, "only requests of this status"),
                *page_parameters(most=MOST),
            ),
            answers={HTTPStatus.OK: Answer("A page of status objects", {"application/json": RequestPage})},
            problems=PAGE_PROBLEMS,
        )
    ]
