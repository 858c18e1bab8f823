"""One sentence about each event, for the people who read a request's log or trace."""

from streams.events import (
    Event,
    ImageFailed,
    ImageProcessed,
    ImageRequested,
    ImagesRequestedAgain,
    OutputCsvRequested,
    RequestCancelled,
    RequestCompleted,
    RequestCreated,
    RequestFilesRemoved,
    RequestRetried,
    RequestStopped,
    WebhookAttempted,
    WebhookDelivered,
    WebhookFailed,
    WebhookRedeliveryRequested,
)


def sentence(event: Event) -> str:
    """The sentence about an event; where there is none, the description of its type."""
    match event:
        case RequestCreated():
            return f"A CSV of {counted(event.rows, 'row')} with {counted(event.total, 'image')} was accepted"
        case ImageRequested():
            return f"Image {event.index} is asked for: {event.input_url}"
        case ImageProcessed():
            times = f"fetched in {event.fetch_ms}, shrunk in {event.shrink_ms}, stored in {event.store_ms} ms"
            return f"Image {event.index}: {event.input_bytes:,} bytes became {event.output_bytes:,}, {times}"
        case ImageFailed():
            return f"Image {event.index} failed: {event.reason}" + (f", {event.detail}" if event.detail else "")
        case RequestCancelled():
            return "The request was cancelled"
        case RequestRetried():
            return f"Retry {event.run}: every image that has not succeeded is processed again"
        case RequestStopped():
            return f"Nothing is under way any more: {_outcome(event)}"
        case OutputCsvRequested():
            return "Every image has its result; the output CSV is written"
        case RequestCompleted():
            return f"Completed: {_outcome(event)}"
        case RequestFilesRemoved():
            return "Its time is over: the images and output CSVs are removed"
        case ImagesRequestedAgain():
            return f"{counted(event.missing, 'image')} without a result that counts asked for again"
        case WebhookAttempted():
            outcome = f"HTTP {event.status}" if event.status is not None else event.reason or "no answer"
            return f"Webhook, attempt {event.attempt}: {outcome} after {event.milliseconds} ms"
        case WebhookRedeliveryRequested():
            return "The webhook is to be sent again"
        case WebhookDelivered():
            return "The webhook's receiver confirmed"
        case WebhookFailed():
            return f"The webhook is given up after {counted(event.attempts, 'attempt')}: {event.reason}"
        case _:
            return (type(event).__doc__ or type(event).__name__).partition("\n")[0].removesuffix(".")


def _outcome(event: RequestCompleted | RequestStopped) -> str:
    failed = f", {event.failed:,} failed" if event.failed else ""
    return f"{event.succeeded:,} of {counted(event.total, 'image')} compressed{failed}"


def counted(number: int, noun: str) -> str:
    """As in ``1 image`` and ``2,000 images``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
