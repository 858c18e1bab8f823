"""The API application: route table, middlewares and HTTP server."""

import asyncio
import signal
import sys

import structlog
from aiohttp import web

from api import page
from api.context import CONTEXT, Context, open_context
from api.contract import docs
from api.contract.routes import Route
from api.http import health
from api.http.api_keys import keys_middleware, require_safe_address
from api.http.cors import cors_headers, cors_middleware
from api.http.metrics import http_metrics
from api.http.problems import problem_middleware
from api.http.protocol_errors import ProblemRunner
from api.http.quotas import QUOTA, DailyQuota, connection_limit, raise_file_limit, share_of
from api.http.rate_limit import RateLimit
from api.http.security_headers import add_security_headers
from api.requests import archive as archives
from api.requests import commands, status
from api.requests import download as results
from api.requests import failures as request_failures
from api.requests import images as request_images
from api.requests import list as request_list
from api.requests import products as product_history
from api.requests import sse as event_stream
from api.requests import stats as request_stats
from api.requests import timeline as request_log
from api.requests import webhook as webhooks
from api.requests.sse import STREAMS, EventStreams, end_streams
from api.uploads import handler as uploads
from api.uploads.limiter import UPLOADS, UploadLimiter
from infra.cancellation import no_stray_cancellation
from infra.disk import free_bytes
from infra.observability import metrics
from infra.settings import Settings, parse_origins

logger = structlog.get_logger(__name__)

SHUTDOWN_TIMEOUT = 8.0  # seconds for in-flight requests to finish
KEEPALIVE_TIMEOUT = 75.0

SWITCH_INTERVAL = 0.0005
"""Thread switch interval (s): threads that read CSVs hold the GIL; with Python's default of 0.005 the event loop's
waits for it add up to 0.1 s per response."""


def route_table() -> list[Route]:
    """All routes of the API."""
    modules = (
        uploads,
        status,
        results,
        archives,
        request_list,
        request_images,
        request_failures,
        request_log,
        request_stats,
        product_history,
        commands,
        event_stream,
        webhooks,
        page,
        docs,
        health,
    )
    return [route for module in modules for route in module.routes()]


def create_app(context: Context) -> web.Application:
    settings = context.settings
    table = route_table()
    origins = parse_origins(settings.cors_origins)
    app = web.Application(
        middlewares=[
            http_metrics,
            problem_middleware,
            cors_middleware(origins),
            keys_middleware(
                settings,
                RateLimit(settings.effective_rate_limit, settings.rate_limit_burst),
                {route.handler for route in table if not route.needs_key},
            ),
        ]
    )
    app[CONTEXT] = context
    app[health.METRICS] = metrics.registry_of("api")
    app[STREAMS] = EventStreams(settings.max_event_streams, share_of(settings.max_event_streams, settings))
    app.on_shutdown.append(end_streams)
    app[request_log.READS] = request_log.read_turns(settings)
    app[QUOTA] = DailyQuota(settings)
    app[archives.ARCHIVES] = archives.archive_limit(settings)
    app[results.MISSES] = RateLimit(results.MISSES_PER_SECOND, results.MISS_BURST)
    upload_limiter = UploadLimiter(settings.max_uploads, share_of(settings.max_uploads, settings))
    app[UPLOADS] = upload_limiter

    async def close_uploads(_: web.Application) -> None:
        upload_limiter.close()

    app.on_cleanup.append(close_uploads)

    async def register_gauges(_: web.Application) -> None:
        metrics.EVENT_STREAMS.read_from(lambda: app[STREAMS].open)
        metrics.UPLOADS.read_from(lambda: upload_limiter.count)
        metrics.VIEW_REQUESTS.read_from(lambda: len(context.view))
        metrics.DATA_FREE.read_from(lambda: free_bytes(settings.data_dir))

    app.on_startup.append(register_gauges)
    for route in table:
        app.add_routes(route.definitions())
    docs.describe(app, table, settings)

    async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
        add_security_headers(response, cors_headers(origins, request))

    app.on_response_prepare.append(add_headers)
    return app


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises ExplainedError when a dependency is unavailable."""
    require_safe_address(settings)
    sys.setswitchinterval(SWITCH_INTERVAL)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with open_context(settings) as context:
        runner = ProblemRunner(
            create_app(context),
            connection_limit(raise_file_limit()),
            access_log=None,
            shutdown_timeout=SHUTDOWN_TIMEOUT,
            keepalive_timeout=KEEPALIVE_TIMEOUT,
        )
        await runner.setup()
        try:
            site = web.TCPSite(runner, settings.host, settings.port)
            await site.start()
            logger.info("api listening", address=site.name, keys=settings.api_keys is not None)
            # Without its follower the view would serve stale statuses for ever.
            waits = {asyncio.create_task(stopping.wait()), asyncio.create_task(context.view.broken())}
            done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for task in pending:
                task.cancel()
            for task in done:
                task.result()
        finally:
            with no_stray_cancellation():
                await runner.cleanup()
