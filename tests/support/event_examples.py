"""An example of each event of the vocabulary."""

from datetime import timedelta

from streams.events.base import Event
from streams.events.maintenance import (
    ProgressRebuildFailed,
    ProgressRebuildRequested,
    ProgressRebuildStarted,
    ProgressRebuilt,
)
from streams.events.progress import ImagesRerequested, ImagesSettled, ProgressEvicted, RequestProjected
from streams.events.requests import RequestCancelled, RequestExpired, RequestForgotten, RequestRetried, RequestStopped
from streams.events.webhooks import WebhookAttempted, WebhookDelivered, WebhookFailed, WebhookRedeliveryRequested
from tests.support.examples import NOON, REQUEST_ID, completed, created, failed, output_requested, processed, requested

WEBHOOK_ID = "msg_4f1d2c3b5a697887"
RECEIVER = "https://receiver.example/hook"
FIRST = requested(quality=60)

# What each stored sample says. A sample is never changed: a new version of an event gets a new file.
STORED: dict[str, Event] = {
    "RequestCreated.v1": created(
        total=3, rows=2, owner="shop", webhook_url=RECEIVER, image_offsets={0: (17, 18), 5: (4, 4)}
    ),
    "ImageRequested.v1": FIRST,
    "ImageProcessed.v1": processed(FIRST),
    "ImageFailed.v1": failed(FIRST),
    "OutputCsvRequested.v1": output_requested(
        [processed(FIRST), failed(requested(index=1))], webhook_url=RECEIVER, owner="shop"
    ),
    "RequestCompleted.v1": completed(webhook_url=RECEIVER, owner="shop"),
    "WebhookAttempted.v1": WebhookAttempted(
        request_id=REQUEST_ID,
        time=NOON,
        webhook_id=WEBHOOK_ID,
        attempt=2,
        status=503,
        milliseconds=41,
        reason="http_503",
    ),
    "WebhookDelivered.v1": WebhookDelivered(request_id=REQUEST_ID, time=NOON, webhook_id=WEBHOOK_ID, attempts=3),
    "WebhookFailed.v1": WebhookFailed(
        request_id=REQUEST_ID, time=NOON, webhook_id=WEBHOOK_ID, attempts=9, reason="http_410"
    ),
    "WebhookRedeliveryRequested.v1": WebhookRedeliveryRequested(
        request_id=REQUEST_ID, time=NOON, webhook_id=WEBHOOK_ID, run=1, after_attempt=8
    ),
    "ImagesRerequested.v1": ImagesRerequested(
        request_id=REQUEST_ID, time=NOON, cause="stalled", round=2, missing=17, image_offsets={0: (17, 99), 5: (4, 4)}
    ),
    "ImagesSettled.v1": ImagesSettled(
        request_id=REQUEST_ID,
        time=NOON,
        run=1,
        first=300,
        count=100,
        created_at=NOON,
        webhook_url=RECEIVER,
        webhook_events=("image.processed", "image.failed"),
        owner="shop",
    ),
    "RequestProjected.v1": RequestProjected(request_id=REQUEST_ID, time=NOON, run=1),
    "RequestCancelled.v1": RequestCancelled(request_id=REQUEST_ID, time=NOON, run=1),
    "RequestRetried.v1": RequestRetried(request_id=REQUEST_ID, time=NOON + timedelta(days=2), run=2, created_at=NOON),
    "RequestStopped.v1": RequestStopped(
        request_id=REQUEST_ID,
        time=NOON,
        run=1,
        total=3,
        succeeded=1,
        failed=1,
        input_bytes=1000,
        output_bytes=400,
        created_at=NOON - timedelta(hours=1),
        webhook_url=RECEIVER,
        owner="shop",
    ),
    "ProgressEvicted.v1": ProgressEvicted(request_id=REQUEST_ID, time=NOON, stage="evicted"),
    "RequestExpired.v1": RequestExpired(request_id=REQUEST_ID, time=NOON),
    "RequestForgotten.v1": RequestForgotten(request_id=REQUEST_ID, time=NOON, created_at=NOON - timedelta(days=2)),
    "ProgressRebuildRequested.v1": ProgressRebuildRequested(
        request_id="rebuild", time=NOON, rebuild_id="r1", partition=3, only_request=REQUEST_ID
    ),
    "ProgressRebuildStarted.v1": ProgressRebuildStarted(request_id="rebuild", time=NOON, rebuild_id="r1", partition=3),
    "ProgressRebuildFailed.v1": ProgressRebuildFailed(
        request_id="rebuild", time=NOON, rebuild_id="r1", partition=3, reason="interrupted by a rebalance"
    ),
    "ProgressRebuilt.v1": ProgressRebuilt(
        request_id="rebuild", time=NOON, rebuild_id="r1", partition=3, events=4000, changed=2, seconds=0.25
    ),
}
EXAMPLES = list(STORED.values())


def name_of(event: Event) -> str:
    return type(event).__name__
