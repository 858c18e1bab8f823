"""Publishes the events of an upload: every ImageRequested, then RequestCreated."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import islice

import structlog
from aiokafka.errors import KafkaError

from api.context import Context
from api.http.problems import unavailable
from api.uploads.csv.dialect import CHARS_PER_STEP
from api.uploads.csv.reader import CheckedCsv, read_rows
from api.uploads.limiter import UploadLimiter
from api.uploads.options import UploadOptions
from api.uploads.receive import Received
from infra.observability import metrics
from streams.events.images import ImageRequested
from streams.events.requests import RequestCreated
from streams.events.trace_context import trace_id_of
from streams.log.producer import EventBatches

logger = structlog.get_logger(__name__)

EVENTS_PER_STEP = 1000
PROBE_SECONDS = 5.0
"""Seconds in which Kafka must answer before anything is written to it."""


@dataclass(frozen=True)
class CheckedUpload:
    """A valid upload and the id and time of its request."""

    request_id: str
    created_at: datetime
    owner: str
    received: Received
    csv: CheckedCsv
    options: UploadOptions


async def publish_events(context: Context, limiter: UploadLimiter, upload: CheckedUpload) -> None:
    """Publish the upload's events. Raises Problem (503) if Kafka is unavailable, within 13 s of its last answer.

    Nothing is written while Kafka is away, and no RequestCreated unless it has acknowledged all ImageRequested just
    before. If Kafka stops between the two, the RequestCreated may be in its socket and take effect later.
    """
    image_requests = _image_requests(upload, bulk=upload.csv.images > context.settings.express_images)
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            await context.view.ask_ends()
        batches = await context.events.start_batches()
        while await limiter.run(partial(_add_next, batches, image_requests)):
            await batches.send()
        written = await context.events.enqueue(
            RequestCreated(
                request_id=upload.request_id,
                time=upload.created_at,
                total=upload.csv.images,
                rows=upload.csv.rows,
                header=upload.csv.header,
                body_sha256=upload.received.sha256,
                owner=upload.owner,
                webhook_url=upload.options.webhook_url,
                webhook_events=upload.options.webhook_events,
                quality=upload.options.quality,
                format=upload.options.format,
                max_width=upload.options.max_width,
                max_height=upload.options.max_height,
                image_offsets=await batches.finish(),
                traceparent=upload.received.traceparent,
            )
        )
    except (KafkaError, TimeoutError) as error:
        logger.warning("publishing upload failed", request_id=upload.request_id, error=repr(error))
        raise unavailable("no request was created: Kafka is unavailable") from None
    try:
        await written
    except KafkaError as error:
        logger.warning("outcome of upload unknown", request_id=upload.request_id, error=repr(error))
        raise unavailable(
            f"Kafka did not acknowledge the request {upload.request_id}: it may be processed once Kafka is back; look"
            " at its status, or repeat the upload with the same Idempotency-Key",
            requestId=upload.request_id,
        ) from None
    metrics.REQUESTS_CREATED.inc()
    metrics.IMAGES_REQUESTED.inc(upload.csv.images)
    logger.info(
        "request created",
        request_id=upload.request_id,
        trace_id=trace_id_of(upload.request_id, upload.received.traceparent),
        rows=upload.csv.rows,
        images=upload.csv.images,
    )


def _image_requests(upload: CheckedUpload, *, bulk: bool) -> Iterator[ImageRequested]:
    index = 0
    for row in read_rows(upload.received.path, upload.csv):
        for position, url in enumerate(row.urls):
            yield ImageRequested(
                request_id=upload.request_id,
                time=upload.created_at,
                index=index,
                row=row.number,
                position=position,
                serial=row.serial,
                product_name=row.product_name,
                input_url=url,
                cells=row.cells if position == 0 else None,
                quality=upload.options.quality,
                format=upload.options.format,
                max_width=upload.options.max_width,
                max_height=upload.options.max_height,
                bulk=bulk,
                owner=upload.owner,
                traceparent=upload.received.traceparent,
            )
            index += 1


def _add_next(batches: EventBatches, events: Iterator[ImageRequested]) -> int:
    """Add the next events to the batches, in a thread; returns their number."""
    count = chars = 0
    for event in islice(events, EVENTS_PER_STEP):
        batches.add(event)
        count += 1
        if (chars := chars + sum(map(len, event.cells or ()))) > CHARS_PER_STEP:
            break
    return count
