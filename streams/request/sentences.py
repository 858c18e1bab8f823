"""Human-readable descriptions of events, for the log and the trace of a request."""

from streams.events.base import Event
from streams.events.images import ImageFailed, ImageProcessed, ImageRequested
from streams.events.progress import ImagesRerequested
from streams.events.requests import (
    OutputCsvRequested,
    RequestCancelled,
    RequestCompleted,
    RequestCreated,
    RequestExpired,
    RequestForgotten,
    RequestRetried,
    RequestStopped,
)
from streams.events.webhooks import WebhookAttempted, WebhookDelivered, WebhookFailed, WebhookRedeliveryRequested


def sentence(event: Event) -> str:
    """One human-readable line about an event; by default the summary of its class's docstring."""
    match event:
        case RequestCreated():
            return f"A CSV of {counted(event.rows, 'row')} with {counted(event.total, 'image')} was accepted"
        case ImageRequested():
            return f"Image {event.index} requested: {event.input_url}"
        case ImageProcessed():
            times = f"fetched in {event.fetch_ms}, compressed in {event.shrink_ms}, stored in {event.store_ms} ms"
            return f"Image {event.index}: {event.input_bytes:,} → {event.output_bytes:,} bytes, {times}"
        case ImageFailed():
            return f"Image {event.index} failed: {event.reason}" + (f", {event.detail}" if event.detail else "")
        case RequestCancelled():
            return f"The request was cancelled by {event.reason}" if event.reason else "The request was cancelled"
        case RequestRetried(reason=str(reason)):
            return f"Retry {event.run}: the images that failed with {reason} are processed again"
        case RequestRetried():
            return f"Retry {event.run}: all images that have not succeeded are processed again"
        case RequestStopped():
            return f"No image of the cancelled request is in flight any more: {_outcome(event)}"
        case OutputCsvRequested():
            return "Every image has its result; the output CSV is requested"
        case RequestCompleted():
            return f"Completed: {_outcome(event)}"
        case RequestForgotten():
            return "The request was forgotten: its files, product names and URLs were deleted"
        case RequestExpired():
            return "The request expired; its images and output CSVs were deleted"
        case ImagesRerequested():
            return f"{counted(event.missing, 'image')} without a result re-requested in run {event.run} ({event.cause})"
        case WebhookAttempted():
            outcome = f"HTTP {event.status}" if event.status is not None else event.reason or "no response"
            return f"Webhook, delivery attempt {event.attempt}: {outcome} after {event.milliseconds} ms"
        case WebhookRedeliveryRequested():
            return "Manual redelivery of the webhook requested"
        case WebhookDelivered():
            return "Webhook delivered"
        case WebhookFailed():
            return f"Webhook failed after {counted(event.attempts, 'delivery attempt')}: {event.reason}"
        case _:
            return (type(event).__doc__ or type(event).__name__).partition("\n")[0].removesuffix(".")


def _outcome(event: RequestCompleted | RequestStopped) -> str:
    failed = f", {event.failed:,} failed" if event.failed else ""
    return f"{event.succeeded:,} of {counted(event.total, 'image')} compressed{failed}"


def counted(number: int, noun: str) -> str:
    """Format a count: ``1 image``, ``2,000 images``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
