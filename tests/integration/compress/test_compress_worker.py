"""A real compress worker: slow and dead hosts, two owners, two workers."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
from aiohttp import web

from infra.settings import Settings
from streams.compress.circuit_breaker import HOST_UNAVAILABLE
from streams.events.base import utc_now
from streams.events.images import ImageFailed, ImageProcessed, ImageRequested
from streams.log.producer import EventLog
from streams.log.topics import Topics
from tests.support.examples import requested
from tests.support.shop import photo
from tests.support.topic_reader import events_in
from tests.support.waiting import eventually
from tests.support.worker_process import CompressWorker

pytestmark = pytest.mark.slow


class Hosts:
    """A tarpit on 127.0.0.1, which sends a byte now and then, and a good host on 127.0.0.2, on one port."""

    def __init__(self) -> None:
        self.port = 0
        self.tarpits = 0
        self.is_back = False
        self.seconds = 0.0
        self.fetched: Counter[str] = Counter()
        self._photo = photo()

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}/{path}"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.fetched[request.path] += 1
        if request.host.startswith("127.0.0.2") or self.is_back:
            await asyncio.sleep(self.seconds)
            return web.Response(body=self._photo, content_type="image/jpeg")
        self.tarpits += 1
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"\xff")
            await asyncio.sleep(0.5)


@asynccontextmanager
async def hosts() -> AsyncIterator[Hosts]:
    site = Hosts()
    app = web.Application()
    app.router.add_get("/{path:.*}", site.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        good = web.TCPSite(runner, "127.0.0.2", 0)
        await good.start()
        site.port = runner.addresses[0][1]
        await web.TCPSite(runner, "127.0.0.1", site.port).start()
        yield site
    finally:
        await runner.cleanup()


def system(settings: Settings, **changes: object) -> Settings:
    return settings.model_copy(update={"fetch_allow": "127.0.0.1,127.0.0.2", "codec_processes": 1, **changes})


@asynccontextmanager
async def event_log(settings: Settings) -> AsyncIterator[EventLog]:
    log = EventLog(settings)
    await log.start()
    try:
        yield log
    finally:
        await log.stop()


async def request_images(log: EventLog, owner: str, urls: list[str], **fields: object) -> str:
    request_id = str(uuid4())
    images: list[ImageRequested] = [
        requested(request_id, index, owner=owner, input_url=url, time=utc_now(), **fields)
        for index, url in enumerate(urls)
    ]
    for written in [await log.enqueue(image) for image in images]:
        await written
    return request_id


async def results(settings: Settings, request_id: str) -> list[ImageProcessed | ImageFailed]:
    found = await events_in(settings, Topics(settings.topic_prefix).image_results, request_id)
    return [event for event in found if isinstance(event, ImageProcessed | ImageFailed)]


async def test_slow_host_does_not_delay_another_owner(kafka_settings: Settings) -> None:
    settings = system(kafka_settings, fetch_timeout=300.0)  # no tarpit ends before, and only eight run at a time
    async with hosts() as site, event_log(settings) as log:
        worker = CompressWorker(settings)
        try:
            for _ in range(3):
                await request_images(log, "alice", [site.url(f"tarpit/{uuid4()}") for _ in range(100)])

            async def is_stuck() -> bool:
                return site.tarpits >= settings.downloads_per_host

            await eventually(is_stuck)
            bobs = await request_images(log, "bob", [site.url("fast.jpg", host="127.0.0.2")])

            async def is_done() -> bool:
                return [type(result) for result in await results(settings, bobs)] == [ImageProcessed]

            await eventually(is_done)
            assert site.tarpits == settings.downloads_per_host
        finally:
            worker.kill()


async def test_dead_host_fails_fast_and_recovers(kafka_settings: Settings) -> None:
    settings = system(kafka_settings, fetch_timeout=2.0)
    async with hosts() as site, event_log(settings) as log:
        worker = CompressWorker(settings)
        try:
            dead = await request_images(log, "alice", [site.url(f"tarpit/{number}") for number in range(2000)])

            async def have_all_failed() -> bool:
                return len(await results(settings, dead)) == 2000

            await eventually(have_all_failed)
            failed = Counter(
                result.reason for result in await results(settings, dead) if isinstance(result, ImageFailed)
            )
            assert failed[HOST_UNAVAILABLE] > 1800
            assert failed.keys() == {HOST_UNAVAILABLE, "fetch_timeout"}
            site.is_back = True

            async def works_again() -> bool:
                again = await request_images(log, "alice", [site.url(f"back/{uuid4()}")])

                async def has_result() -> bool:
                    return bool(await results(settings, again))

                await eventually(has_result)
                return isinstance((await results(settings, again))[0], ImageProcessed)

            await eventually(works_again)
        finally:
            worker.kill()


async def test_waiting_images_are_fetched_once_across_a_rebalance(kafka_settings: Settings) -> None:
    settings = system(kafka_settings, downloads_per_host=4)
    async with hosts() as site, event_log(settings) as log:
        site.seconds = 0.2
        workers = [CompressWorker(settings, "first")]
        try:
            urls = [site.url(f"{number}.jpg", host="127.0.0.2") for number in range(400)]
            request_id = await request_images(log, "", urls)

            async def has_begun() -> bool:
                return len(site.fetched) >= 20

            await eventually(has_begun)
            workers.append(CompressWorker(settings, "second"))

            async def is_done() -> bool:
                return len({result.index for result in await results(settings, request_id)}) == 400

            await eventually(is_done)
            assert "partitions assigned" in workers[1].log
            repeated = sum(site.fetched.values()) - 400
            assert repeated <= 20, "those that were in flight at the rebalance, at most"
        finally:
            for worker in workers:
                worker.kill()
