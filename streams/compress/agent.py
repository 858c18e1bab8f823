"""The compress app: fetch ▸ shrink ▸ store ▸ ImageProcessed, or ImageFailed with a reason."""

import hashlib
import time
from contextlib import AsyncExitStack

import structlog
from faust.types import StreamT

from infra.faust_app import create_app
from infra.outbound import AllowList, OutboundClient
from infra.settings import settings
from infra.storage import Storage
from streams.compress.decoders import DecoderPool
from streams.compress.fetch import FetchFailed, fetch
from streams.compress.outcome import ImageRejected
from streams.consume import consume
from streams.event_log import EventLog
from streams.events import Event, ImageFailed, ImageProcessed, ImageRequested
from streams.resources import Resources
from streams.topics import Topics

log = structlog.get_logger(__name__)

topics = Topics(settings().topic_prefix)
app = create_app(topics.group("compress"), settings=settings(), partitions=settings().partitions)

DECODER_MEMORY_BYTES = 2 * 1024**3


class Compressor:
    """Turns an ImageRequested into its result and writes that down."""

    def __init__(self, event_log: EventLog, client: OutboundClient, decoders: DecoderPool, storage: Storage) -> None:
        self.event_log = event_log
        self._client = client
        self._decoders = decoders
        self._storage = storage

    async def on_event(self, event: Event) -> None:
        if isinstance(event, ImageRequested):
            await self.event_log.append(await self._result_of(event))

    async def _result_of(self, request: ImageRequested) -> ImageProcessed | ImageFailed:
        try:
            return await self._process(request)
        except (FetchFailed, ImageRejected) as failure:
            log.info("image failed", image=request.subject, reason=str(failure.reason), detail=failure.detail)
            return ImageFailed.of(request, reason=str(failure.reason), detail=failure.detail)

    async def _process(self, request: ImageRequested) -> ImageProcessed:
        fetched = await fetch(
            self._client,
            request.input_url,
            max_bytes=settings().max_image_bytes,
            timeout=settings().fetch_timeout,
        )
        started = time.monotonic()
        shrunk = await self._decoders.shrink(
            fetched.body, quality=request.quality, max_pixels=settings().max_image_pixels
        )
        shrink_ms = _elapsed_ms(started)
        started = time.monotonic()
        path = image_path(request, shrunk.format)
        await self._storage.put(path, shrunk.data, f"image/{shrunk.format}")
        return ImageProcessed.of(
            request,
            output_url=self._storage.object_link(path),
            output_path=path,
            input_bytes=len(fetched.body),
            output_bytes=len(shrunk.data),
            format=shrunk.format,
            width=shrunk.width,
            height=shrunk.height,
            sha256=hashlib.sha256(shrunk.data).hexdigest(),
            kept_original=shrunk.kept_original,
            fetch_ms=fetched.milliseconds,
            shrink_ms=shrink_ms,
            store_ms=_elapsed_ms(started),
        )


def image_path(request: ImageRequested, image_format: str) -> str:
    """The storage key of an image's result: work that is repeated overwrites itself."""
    ending = "jpg" if image_format == "jpeg" else image_format
    return f"images/{request.request_id}/{request.index}.{ending}"


def _elapsed_ms(started: float) -> int:
    return round((time.monotonic() - started) * 1000)


async def _open(stack: AsyncExitStack) -> Compressor:
    event_log = EventLog(settings())
    await event_log.start()
    stack.push_async_callback(event_log.stop)
    client = await stack.enter_async_context(OutboundClient(AllowList.parse(settings().fetch_allow)))
    decoders = await stack.enter_async_context(
        DecoderPool(settings().codec_processes, settings().codec_timeout, DECODER_MEMORY_BYTES)
    )
    return Compressor(event_log, client, decoders, Storage.of(settings()))


resources = Resources(_open)


@app.agent(app.topic(topics.image_requests, key_type=bytes, value_type=bytes), name="compress")
async def compress(stream: StreamT[bytes]) -> None:
    # Downloads overlap the codec: enough images are in flight to keep every decoder busy.
    async with resources as compressor:
        await consume(stream, compressor.event_log, compressor.on_event, in_flight=settings().fetch_concurrency)
