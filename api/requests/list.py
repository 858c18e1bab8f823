"""Request list of an API key, newest first, paged."""

import asyncio
from datetime import datetime
from heapq import merge
from http import HTTPStatus
from itertools import islice

from aiohttp import web
from pydantic import TypeAdapter

from api.context import CONTEXT, Context
from api.contract.models import RequestPage
from api.contract.routes import Parameter, Response, Route
from api.http.api_keys import OWNER
from api.http.paging import PAGE_PROBLEMS, choice_of, cursor_of, cursor_to, json_response, number_of, page_parameters
from api.http.problems import unavailable_on
from infra.cassandra.session import CassandraUnavailableError
from streams.events.base import Time
from streams.progress.view import StaleViewError
from streams.projections.history.queries import NEWEST_REQUEST
from streams.request.lifecycle import Phase
from streams.request.status import Status

DEFAULT_LIMIT = 50
MAX_LIMIT = 200
FRESH_SECONDS = 5.0

# Requests scanned per page when filtering by status; the cursor continues after them.
MAX_SCANNED = 1000

Cursor = tuple[datetime, str]
_CURSOR: TypeAdapter[tuple[Time, str]] = TypeAdapter(tuple[Time, str])


async def list_requests(request: web.Request) -> web.Response:
    """``GET /api/requests``: a page of status objects, optionally filtered by ``?status=``."""
    context, owner = request.app[CONTEXT], request[OWNER]
    limit = number_of(request, "limit", default=DEFAULT_LIMIT, maximum=MAX_LIMIT)
    wanted = choice_of(request, "status", tuple(Phase))
    before = cursor_of(request, _CURSOR)
    reason = "cannot list the requests: Kafka or Cassandra is unavailable"
    with unavailable_on(CassandraUnavailableError, StaleViewError, reason=reason):
        if before is None:
            await context.view.catch_up(FRESH_SECONDS)  # the first page includes requests accepted just before
        return json_response(await _page(context, owner, before or NEWEST_REQUEST, limit, wanted))


async def _page(context: Context, owner: str, before: Cursor, limit: int, wanted: str | None) -> RequestPage:
    items: list[Status] = []
    scanned = 0
    while True:
        cursors = await _cursors(context, owner, before, limit + 1)
        statuses = await asyncio.gather(*(context.status(request_id) for _, request_id in cursors[:limit]))
        for cursor, status in zip(cursors, statuses, strict=False):
            before = cursor
            if status is not None and wanted in (None, status.status):
                items.append(status)
                if len(items) == limit:
                    break
        scanned += len(statuses)
        more = bool(cursors) and before != cursors[-1]
        if len(items) == limit or not more or scanned >= MAX_SCANNED:
            return RequestPage(items=items, next_cursor=cursor_to(before) if more else None)


async def _cursors(context: Context, owner: str, before: Cursor, count: int) -> list[Cursor]:
    """The next ``count`` requests before the cursor: the history lacks the newest, the progress view the oldest."""
    from_view = list(islice(context.view.requests_of(owner, before), count))
    from_history: list[Cursor] = []
    async for cursor in context.history.requests_of(owner, before):
        from_history.append(cursor)
        if len(from_history) == count:
            break
    merged = dict.fromkeys(merge(from_view, from_history, reverse=True))
    return list(islice(merged, count))


def routes() -> list[Route]:
    return [
        Route(
            "GET",
            "/api/requests",
            list_requests,
            tag="Requests",
            summary="List requests",
            description="The requests of the API key, newest first.",
            parameters=(
                Parameter("status", "query", Phase, "only requests with this status"),
                *page_parameters(max_limit=MAX_LIMIT),
            ),
            responses={HTTPStatus.OK: Response("A page of status objects", {"application/json": RequestPage})},
            problems=PAGE_PROBLEMS,
        )
    ]
