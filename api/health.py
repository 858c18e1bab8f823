"""Probes: ``/healthz`` says that the process lives, ``/readyz`` that it may be sent work, or why not."""

from http import HTTPStatus
from typing import Literal

import structlog
from aiohttp import web
from pydantic import BaseModel

from api.context import CONTEXT
from api.routes import Answer, Route
from infra.cassandra.session import CassandraUnavailableError
from streams.progress.view import StaleViewError

log = structlog.get_logger(__name__)

PATIENCE = 2.0  # seconds that Kafka gets to answer


class Health(BaseModel):
    """What a probe says; ``problems`` has what is wrong by the part that it is wrong with."""

    status: Literal["ok", "ready", "not ready"]
    problems: dict[Literal["kafka", "cassandra"], str] | None = None


async def healthz(request: web.Request) -> web.Response:
    return _answer(Health(status="ok"))


async def readyz(request: web.Request) -> web.Response:
    context = request.app[CONTEXT]
    problems: dict[Literal["kafka", "cassandra"], str] = {}
    try:
        await context.view.catch_up(PATIENCE)
    except StaleViewError as error:
        log.warning("not ready", kafka=str(error))
        problems["kafka"] = "the progress view can't catch up with it"
    try:
        await context.session.execute("SELECT number FROM schema_migrations LIMIT 1")
    except CassandraUnavailableError as error:
        log.warning("not ready", cassandra=str(error))
        problems["cassandra"] = "it doesn't answer"
    if problems:
        return _answer(Health(status="not ready", problems=problems), HTTPStatus.SERVICE_UNAVAILABLE)
    return _answer(Health(status="ready"))


def _answer(health: Health, status: HTTPStatus = HTTPStatus.OK) -> web.Response:
    return web.json_response(text=health.model_dump_json(exclude_none=True), status=status)


def routes() -> list[Route]:
    return [
        Route(
            "GET",
            "/healthz",
            healthz,
            tag="Probes",
            summary="Tell that the process lives",
            answers={HTTPStatus.OK: Answer("It lives", {"application/json": Health})},
            needs_key=False,
        ),
        Route(
            "GET",
            "/readyz",
            readyz,
            tag="Probes",
            summary="Tell whether Kafka and Cassandra can be reached",
            answers={
                HTTPStatus.OK: Answer("They can", {"application/json": Health}),
                HTTPStatus.SERVICE_UNAVAILABLE: Answer("They can't all", {"application/json": Health}),
            },
            needs_key=False,
        ),
    ]
