"""The API in the process of the test."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.test_utils import BaseTestServer, TestServer

from api.app import create_app
from api.context import Context
from infra.cassandra.session import Session
from infra.observability.readiness import Readiness
from infra.outbound.addresses import AllowList
from infra.settings import Settings
from infra.storage import Storage
from streams.log.producer import EventLog
from streams.progress.view import ProgressView
from streams.projections.history import History
from streams.webhooks.store import Deliveries


@asynccontextmanager
async def serving_api(settings: Settings) -> AsyncIterator[tuple[BaseTestServer, web.Application]]:
    session = await Session.connect(settings)
    view = ProgressView(settings)
    await view.start()
    app = create_app(
        Context(
            settings,
            EventLog(settings),
            view,
            session,
            History(session),
            Deliveries(session, settings.partitions),
            Storage.of(settings),
            AllowList.parse(""),
            Readiness(),
        )
    )
    try:
        async with TestServer(app, host="127.0.0.1") as server:
            yield server, app
    finally:
        await view.stop()
        await session.close()
