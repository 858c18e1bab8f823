"""HTTP server of a worker for liveness, readiness and metrics: ``/healthz``, ``/readyz``, ``/metrics``."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry

from infra.errors import ExplainedError
from infra.observability.metrics import exposition
from infra.observability.readiness import ALIVE, Health, Readiness

logger = structlog.get_logger(__name__)

SHUTDOWN_TIMEOUT = 1.0


class ProbesError(ExplainedError):
    """Cannot listen on the address; the message says why."""


def health_answer(health: Health) -> web.Response:
    return web.json_response(text=health.model_dump_json(exclude_none=True), status=health.http_status)


def metrics_answer(request: web.Request, registry: CollectorRegistry) -> web.Response:
    body, content_type = exposition(registry, request.headers.get("Accept", ""))
    return web.Response(body=body, headers={"Content-Type": content_type})


@asynccontextmanager
async def serving_probes(
    host: str, port: int, readiness: Readiness, registry: CollectorRegistry
) -> AsyncIterator[tuple[str, int]]:
    """Serve for as long as the context lasts; yields the address. ``port`` 0: any free one. Raises ProbesError."""

    async def healthz(_: web.Request) -> web.Response:
        return health_answer(ALIVE)

    async def readyz(_: web.Request) -> web.Response:
        return health_answer(readiness.health())

    async def metrics(request: web.Request) -> web.Response:
        return metrics_answer(request, registry)

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise ProbesError(f"probes and metrics: {host}:{port} can't be listened on: {error.strerror}") from None
        address = runner.addresses[0][:2]
        logger.info("probes and metrics", address="http://{}:{}".format(*address))
        yield address
    finally:
        await asyncio.shield(runner.cleanup())
