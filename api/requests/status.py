"""Status of a request, with ETag for conditional requests."""

import hashlib
from http import HTTPStatus

import orjson
from aiohttp import web

from api.context import CONTEXT
from api.contract.routes import Parameter, Response, Route
from api.http.api_keys import OWNER
from api.http.etag import is_current
from api.http.problems import not_found, unavailable_on
from infra.cassandra.session import CassandraUnavailableError
from streams.progress.view import StaleViewError
from streams.request.status import Status

RETRY_AFTER_SECONDS = "1"


async def status_of(request: web.Request, *, fresh: bool = True) -> Status:
    """The status of the request in the path, as `Context.status`.

    Raises Problem: 404 unless the caller owns it, 503 if unavailable.
    """
    request_id = request.match_info["request_id"]
    reason = "cannot read the request's status: Kafka or Cassandra is unavailable"
    with unavailable_on(StaleViewError, CassandraUnavailableError, reason=reason):
        status = await request.app[CONTEXT].status(request_id, fresh=fresh)
    # Not 403, which would reveal that the request exists.
    if status is None or status.owner != request[OWNER]:
        raise not_found(request_id)
    return status


async def get_status(request: web.Request) -> web.Response:
    """``GET /api/status/{id}``: the status object, or 304 if it matches ``If-None-Match``."""
    status = await status_of(request)
    body = orjson.dumps(status.as_dict())
    headers = {"ETag": f'"{fingerprint(body)}"', "Cache-Control": "no-cache"}
    if status.status == "processing":
        headers["Retry-After"] = RETRY_AFTER_SECONDS
    if is_current(request, headers["ETag"]):
        return web.Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
    return web.Response(body=body, content_type="application/json", charset="utf-8", headers=headers)


def fingerprint(body: bytes) -> str:
    """ETag and event id of a status object: a hash of its JSON."""
    return hashlib.sha256(body).hexdigest()[:32]


def routes() -> list[Route]:
    return [
        Route(
            "GET",
            "/api/status/{request_id}",
            get_status,
            tag="Requests",
            summary="Get the status of a request",
            description="Poll until `status` is not `processing`; with the `ETag` as `If-None-Match`, the response is"
            " 304 without a body until the status changes.",
            parameters=(Parameter("If-None-Match", "header", str, "`ETag` of the client's copy"),),
            responses={
                HTTPStatus.OK: Response(
                    "The status",
                    {"application/json": Status},
                    {
                        "ETag": "hash of the status",
                        "Retry-After": "poll interval in seconds, while processing",
                    },
                ),
                HTTPStatus.NOT_MODIFIED: Response("The status has not changed"),
            },
            aliases=("/status/{request_id}",),
        )
    ]
