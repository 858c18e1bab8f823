"""The compress app: fetch ▸ shrink ▸ store ▸ ImageProcessed, or ImageFailed with a reason."""

import hashlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import structlog
from faust.types import EventT, StreamT

from infra.faust.app import create_app
from infra.faust.consumer import EVENT_OVERHEAD
from infra.faust.resources import Resources
from infra.observability import metrics
from infra.outbound.addresses import AllowList
from infra.outbound.budget import MAX_PAUSED
from infra.outbound.client import OutboundClient
from infra.outbound.connections import MAX_SLOT_WAIT
from infra.outbound.request_headers import RequestHeaders
from infra.settings import MAX_PARTITIONS, MIB, Settings, settings
from infra.storage import IMAGE_CACHE_CONTROL, STORAGE_CHECK_INTERVAL, Storage, check_storage
from streams.compress.byte_budget import ByteBudget
from streams.compress.cancellations import CancelledRequests, following_cancellations
from streams.compress.circuit_breaker import OUTAGE_LIMIT, CircuitBreaker
from streams.compress.codec.outcome import ImageRejected
from streams.compress.decoders.pool import ATTEMPTS, WALL_CLOCK_FACTOR, DecoderPool
from streams.compress.dedup import RecentResults
from streams.compress.fair_slots import OWN_SHARE, SPARE, FairSlots, Group, slots_with_a_spare
from streams.compress.fetch import FetchFailed, fetch, host_of
from streams.compress.single_flight import SingleFlight
from streams.events.base import Event, UnreadableEvent, utc_now
from streams.events.images import ImageFailed, ImageProcessed, ImageRequested
from streams.events.registry import decode
from streams.log.consume import consume
from streams.log.producer import EventLog
from streams.log.topics import Topics

log = structlog.get_logger(__name__)

LINGER_MS = 50  # batched results cost every reader less, and no client waits for a single one

READ_AHEAD = 64 * MIB
"""Memory (bytes) for a worker's delivered events: those in process, and those that wait for a slot. When it is used up,
no more records are read."""

topics = Topics(settings().topic_prefix)
app = create_app(
    topics.group("compress"),
    role="compress",
    settings=settings(),
    partitions=settings().partitions,
    read_ahead=READ_AHEAD,
)

_Key = tuple[str, str, int | str, str | None, int | None, int | None]

MAX_CACHED = 20_000
"""Maximum number of results cached for reuse, a few hundred bytes each."""


@dataclass(frozen=True)
class StoredImage:
    """A fetched, compressed and stored image."""

    path: str
    input_bytes: int
    output_bytes: int
    format: str
    width: int
    height: int
    sha256: str
    kept_original: bool
    quality: int | None
    pages: int | None
    truncated: bool
    fetch_ms: int
    shrink_ms: int
    store_ms: int


class Compressor:
    """Processes image requests and appends their results.

    If an owner requests a URL again in the same quality, format and size, while it is in flight or within
    ``reuse_seconds``, it is not fetched again: its output is copied within the storage. Each worker has its own
    cache, so n workers fetch a URL at most n times.
    """

    def __init__(
        self,
        settings: Settings,
        event_log: EventLog,
        client: OutboundClient,
        decoders: DecoderPool,
        storage: Storage,
        cancelled: CancelledRequests,
        recent: RecentResults,
    ) -> None:
        self.event_log = event_log
        self._settings = settings
        self._cancelled = cancelled
        self._recent = recent
        self._client = client
        self.decoders = decoders
        self.storage = storage
        self._circuits = CircuitBreaker()
        # An image that waits for a slot doesn't keep others from being read.
        self._slots = FairSlots(
            settings.fetch_concurrency,
            per_host=settings.downloads_per_host,
            share=OWN_SHARE,
            is_exempt=lambda group, host: self._circuits.is_open(group[0], host),  # they fail without a download
        )
        self._leave_host: dict[str, Callable[[], None]] = {}
        self._decoding = slots_with_a_spare(settings.codec_processes)
        self._budget = ByteBudget(settings.fetch_memory)
        self._single_flight: SingleFlight[_Key, StoredImage] = SingleFlight(settings.reuse_seconds, MAX_CACHED)
        metrics.IMAGES_WAITING.read_from(lambda: self._slots.waiting)
        metrics.OPEN_CIRCUITS.read_from(lambda: self._circuits.open_circuits)
        metrics.FETCH_MEMORY.read_from(lambda: self._budget.held)
        metrics.FETCH_MEMORY_LIMIT.read_from(lambda: self._budget.limit)

    def admit(self, record: EventT[bytes]) -> AbstractAsyncContextManager[None]:
        """A slot for the image of a record; a record that needs no download is admitted at once."""
        try:
            event = decode(record.message.value)  # not kept until it has a slot: an event takes 3 KB of memory
        except UnreadableEvent:
            return nullcontext()
        if not isinstance(event, ImageRequested) or self._cancelled.covers(event):
            return nullcontext()
        return self._admitted(event)

    @asynccontextmanager
    async def _admitted(self, request: ImageRequested) -> AsyncIterator[None]:
        host = host_of(request.input_url, self._client)
        async with self._slots.slot(_group(request), host, request.request_id) as leave_host:
            self._leave_host[request.id] = leave_host
            try:
                yield
            finally:
                self._leave_host.pop(request.id, None)  # a redelivered event may be in flight twice

    async def on_event(self, event: Event) -> None:
        if not isinstance(event, ImageRequested) or self._cancelled.covers(event):
            return
        if not await self._recent.has_result(event):
            result = await self.result_of(event)
            await self.event_log.append(result)
            _count(result)

    async def result_of(self, request: ImageRequested) -> ImageProcessed | ImageFailed:
        """Process an image and store its output. Faults of the image or its host are results, not errors."""
        try:
            made = await self._stored(request)
        except (FetchFailed, ImageRejected) as failure:
            log.info("image failed", image=request.subject, reason=str(failure.reason), detail=failure.detail)
            return ImageFailed.of(request, reason=str(failure.reason), detail=failure.detail)
        return ImageProcessed.of(
            request,
            output_url=self.storage.object_link(made.path),
            output_path=made.path,
            input_bytes=made.input_bytes,
            output_bytes=made.output_bytes,
            format=made.format,
            width=made.width,
            height=made.height,
            sha256=made.sha256,
            kept_original=made.kept_original,
            quality=made.quality,
            pages=made.pages,
            truncated=made.truncated,
            fetch_ms=made.fetch_ms,
            shrink_ms=made.shrink_ms,
            store_ms=made.store_ms,
        )

    async def _stored(self, request: ImageRequested) -> StoredImage:
        """The image, stored under the key of this request."""
        key = _key(request)
        while True:
            made, is_ours = await self._single_flight.get(key, lambda: self._process(request))
            if is_ours:
                return made
            started = time.monotonic()
            path = image_path(request, made.format)
            if path == made.path or await self.storage.copy(made.path, path):
                metrics.REUSED.inc()
                return replace(made, path=path, fetch_ms=0, shrink_ms=0, store_ms=_elapsed_ms(started))
            self._single_flight.forget(key)  # it was removed from the storage

    async def _process(self, request: ImageRequested) -> StoredImage:
        with self._budget.holding(request.owner) as holding:
            download = partial(
                fetch,
                self._client,
                request.input_url,
                max_bytes=self._settings.max_image_bytes,
                timeout=self._settings.fetch_timeout,
                owner=request.owner,
                admit=holding.grow,
            )
            host = host_of(request.input_url, self._client)
            fetched = await self._circuits.download(request.owner, host, download)
            if leave_host := self._leave_host.get(request.id):
                leave_host()  # others may download there while this image waits for a decoder
            started = time.monotonic()
            async with self._decoding.slot(_group(request), host, request.request_id):
                shrunk = await self.decoders.shrink(
                    fetched.body,
                    quality=request.quality,
                    max_pixels=self._settings.max_image_pixels,
                    target_format=request.format,
                    max_width=request.max_width,
                    max_height=request.max_height,
                )
            shrink_seconds = time.monotonic() - started
            started = time.monotonic()
            path = image_path(request, shrunk.format)
            await self.storage.put(path, shrunk.data, f"image/{shrunk.format}", cache_control=IMAGE_CACHE_CONTROL)
            store_seconds = time.monotonic() - started
            _FETCH.observe(fetched.milliseconds / 1000)
            _WAIT.observe(max(0.0, shrink_seconds - shrunk.decode_seconds - shrunk.encode_seconds))
            _DECODE.observe(shrunk.decode_seconds)
            _ENCODE.observe(shrunk.encode_seconds)
            _STORE.observe(store_seconds)
            return StoredImage(
                path=path,
                input_bytes=len(fetched.body),
                output_bytes=len(shrunk.data),
                format=shrunk.format,
                width=shrunk.width,
                height=shrunk.height,
                sha256=hashlib.sha256(shrunk.data).hexdigest(),
                kept_original=shrunk.kept_original,
                quality=shrunk.quality,
                pages=shrunk.pages,
                truncated=shrunk.truncated,
                fetch_ms=fetched.milliseconds,
                shrink_ms=round(shrink_seconds * 1000),
                store_ms=round(store_seconds * 1000),
            )


_FETCH, _WAIT, _DECODE, _ENCODE, _STORE = (
    metrics.STAGE_SECONDS.labels(stage) for stage in ("fetch", "wait", "decode", "encode", "store")
)
_PROCESSED = metrics.IMAGES.labels("processed", "")


def _count(result: ImageProcessed | ImageFailed) -> None:
    if isinstance(result, ImageFailed):
        metrics.IMAGES.labels("failed", metrics.by_class(result.reason)).inc()
    else:
        _PROCESSED.inc()
        metrics.INPUT_BYTES.inc(result.input_bytes)
        metrics.OUTPUT_BYTES.inc(result.output_bytes)
        metrics.KEPT_ORIGINAL.inc(result.kept_original)
    metrics.IMAGE_SECONDS.observe(max(0.0, (utc_now() - result.requested_at).total_seconds()))


def _group(request: ImageRequested) -> Group:
    return request.owner, request.bulk


def _key(request: ImageRequested) -> _Key:
    """Everything that a result depends on, and the owner: the timing of a reuse must not reveal that another tenant has
    fetched the URL."""
    return (
        request.owner,
        request.input_url,
        request.quality,
        request.format,
        request.max_width,
        request.max_height,
    )


def image_path(request: ImageRequested, image_format: str) -> str:
    """The storage key of an image's output: processing it again overwrites the same object."""
    ending = "jpg" if image_format == "jpeg" else image_format
    return f"images/{request.request_id}/{request.index}.{ending}"


def _elapsed_ms(started: float) -> int:
    return round((time.monotonic() - started) * 1000)


def max_image_seconds(settings: Settings) -> float:
    """Maximum duration (s) of an image with a slot: an outage, then last in the queues for memory and decoders."""
    turns_for_memory = settings.fetch_concurrency * settings.max_image_bytes / settings.fetch_memory + 2
    turns_at_decoders = settings.fetch_concurrency / settings.codec_processes + 2
    waiting = settings.fetch_timeout * turns_for_memory + settings.codec_timeout * turns_at_decoders
    waiting += MAX_PAUSED + MAX_SLOT_WAIT  # for DNS look-ups and connections; the last wait may begin at the limit
    return OUTAGE_LIMIT + waiting + ATTEMPTS * WALL_CLOCK_FACTOR * settings.codec_timeout


async def _open(stack: AsyncExitStack) -> Compressor:
    event_log = EventLog(settings(), role="compress", linger_ms=LINGER_MS)
    await event_log.start()
    stack.push_async_callback(event_log.stop)
    client = await stack.enter_async_context(
        OutboundClient(
            AllowList.parse(settings().fetch_allow),
            limit_per_host=settings().downloads_per_host,
            headers=RequestHeaders.parse(settings().fetch_headers),
        )
    )
    decoders = await stack.enter_async_context(
        DecoderPool(settings().codec_processes + SPARE, settings().codec_timeout, settings().codec_memory)
    )
    cancelled = await stack.enter_async_context(following_cancellations(settings()))
    return Compressor(settings(), event_log, client, decoders, Storage.of(settings()), cancelled, _recent)


resources = Resources(_open)


def _decoders_problem() -> str | None:
    shared = resources.opened
    return None if shared and shared.decoders.process_ids else "none is running"


async def _check_storage() -> None:
    await check_storage(shared.storage if (shared := resources.opened) else None)


app.worker_monitor.readiness.add_state("kafka writes", resources.problem_of(lambda shared: shared.event_log.problem))
app.worker_monitor.readiness.add_state("decoders", _decoders_problem)
app.worker_monitor.readiness.add_check("storage", _check_storage, interval=STORAGE_CHECK_INTERVAL)
_recent = RecentResults(settings())


@app.on_partitions_assigned.connect
async def begin_with_partitions(*_: object, **__: object) -> None:
    _recent.expire()


@app.agent(app.topic(topics.image_requests, key_type=bytes, value_type=bytes), name="compress")
async def compress(stream: StreamT[bytes]) -> None:
    async with resources as compressor:
        await consume(
            stream,
            compressor.event_log,
            compressor.on_event,
            in_flight=READ_AHEAD // EVENT_OVERHEAD + MAX_PARTITIONS,  # no bound beside READ_AHEAD
            max_seconds=max_image_seconds(settings()),
            admit=compressor.admit,
        )
