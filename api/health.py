"""Probes: ``/healthz`` says that the process lives, ``/readyz`` that it may be sent work, or why not."""

from http import HTTPStatus

from aiohttp import web

from api.context import CONTEXT
from infra.cassandra.session import CassandraUnavailableError
from streams.progress.view import StaleViewError

PATIENCE = 2.0  # seconds that Kafka gets to answer


async def healthz(request: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


async def readyz(request: web.Request) -> web.Response:
    context = request.app[CONTEXT]
    problems: dict[str, str] = {}
    try:
        await context.view.catch_up(PATIENCE)
    except StaleViewError as error:
        problems["kafka"] = str(error)
    try:
        await context.session.execute("SELECT number FROM schema_migrations LIMIT 1")
    except CassandraUnavailableError as error:
        problems["cassandra"] = str(error)
    if problems:
        return web.json_response({"status": "not ready", "problems": problems}, status=HTTPStatus.SERVICE_UNAVAILABLE)
    return web.json_response({"status": "ready"})


def routes() -> list[web.RouteDef]:
    return [web.get("/healthz", healthz), web.get("/readyz", readyz)]
