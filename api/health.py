"""Probes: ``/healthz`` says that the process lives, ``/readyz`` that it may be sent work, or why not."""

from http import HTTPStatus

from aiohttp import web

from api.context import CONTEXT
from infra.cassandra.session import CassandraUnavailableError


async def healthz(request: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


async def readyz(request: web.Request) -> web.Response:
    context = request.app[CONTEXT]
    problems: dict[str, str] = {}
    if not context.view.ready:
        problems["kafka"] = "the progress table's changelog is not being read"
    try:
        await context.session.execute("SELECT number FROM schema_migrations LIMIT 1")
    except CassandraUnavailableError as error:
        problems["cassandra"] = str(error)
    if problems:
        return web.json_response({"status": "not ready", "problems": problems}, status=HTTPStatus.SERVICE_UNAVAILABLE)
    return web.json_response({"status": "ready"})


def routes() -> list[web.RouteDef]:
    return [web.get("/healthz", healthz), web.get("/readyz", readyz)]
