"""The API: routes, middlewares, and how it is served."""

import asyncio
import contextlib
import signal

import structlog
from aiohttp import web

from api import health, results, status, uploads, webhooks
from api.context import CONTEXT, Context, open_context
from api.keys import keys_middleware, require_safe_address
from api.problems import problem_middleware
from infra.settings import Settings

log = structlog.get_logger(__name__)

SHUTDOWN_TIMEOUT = 8.0  # seconds that running requests get to finish
KEEPALIVE_TIMEOUT = 75.0


def create_app(context: Context) -> web.Application:
    app = web.Application(middlewares=[problem_middleware, keys_middleware(context.settings)])
    app[CONTEXT] = context
    for room in (uploads, status, results, webhooks, health):
        app.add_routes(room.routes())
    return app


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises what says why it can't be served."""
    require_safe_address(settings)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with open_context(settings) as context:
        runner = web.AppRunner(
            create_app(context),
            access_log=None,
            shutdown_timeout=SHUTDOWN_TIMEOUT,
            keepalive_timeout=KEEPALIVE_TIMEOUT,
        )
        await runner.setup()
        try:
            site = web.TCPSite(runner, settings.host, settings.port)
            await site.start()
            log.info("api listens", address=site.name, keys=settings.api_keys is not None)
            # A view that isn't read any more would answer with old news for ever.
            waits = {asyncio.create_task(stopping.wait()), asyncio.create_task(context.view.broken())}
            done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for task in pending:
                task.cancel()
            for task in done:
                task.result()
        finally:
            with contextlib.suppress(asyncio.CancelledError):
                await runner.cleanup()
