"""A request's events as people read them: one line each, but for the images, of which there may be a million."""

from dataclasses import dataclass
from datetime import datetime
from typing import Self

from pydantic import AwareDatetime, Field

from api.intervals import Intervals
from api.models import Answer
from streams.events import (
    Event,
    ImageFailed,
    ImageProcessed,
    ImageRequested,
    ImagesRequestedAgain,
    ImagesSettled,
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

MOST_INTERVALS = 60
MOST_ENTRIES = 1000


# In which order what bears the same time is told: events are dated by what they follow from.
_ORDER = {name: place for place, name in enumerate(("RequestCreated", "ImageResults", "OutputCsvRequested"))}


class ResultSums(Answer):
    """What came of the images that had their result in an interval."""

    succeeded: int = 0
    failed: int = 0
    input_bytes: int = Field(0, description="of the images that succeeded")
    output_bytes: int = 0


class LogEntry(Answer):
    """An event, or the results of an interval."""

    time: AwareDatetime
    until: AwareDatetime | None = Field(None, description="when the last of the `results` came, where there are some")
    event: str = Field(description="name of the event; `ImageResults` for those of an interval")
    text: str = Field(description="what happened, for people")
    results: ResultSums | None = None


class RequestLog(Answer):
    """What happened to a request, oldest first, read from the events that tell of it."""

    entries: list[LogEntry]
    whole: bool = Field(description="false: there is more than is read for one answer")


@dataclass
class _Results:
    """What came of the images that had their result between two times, both included."""

    first: datetime
    last: datetime
    succeeded: int
    failed: int
    input_bytes: int
    output_bytes: int

    def add(self, other: Self) -> None:
        self.first = min(self.first, other.first)
        self.last = max(self.last, other.last)
        self.succeeded += other.succeeded
        self.failed += other.failed
        self.input_bytes += other.input_bytes
        self.output_bytes += other.output_bytes

    def entry(self) -> LogEntry:
        parts = [f"{_count(self.succeeded, 'image')} compressed"] if self.succeeded else []
        if self.failed:
            parts.append(f"{_count(self.failed, 'image')} failed")
        return LogEntry(
            time=self.first,
            until=self.last,
            event="ImageResults",
            text=", ".join(parts),
            results=ResultSums(
                succeeded=self.succeeded,
                failed=self.failed,
                input_bytes=self.input_bytes,
                output_bytes=self.output_bytes,
            ),
        )


class LogSummary:
    """Folds a request's events, in any order and with repeats, into a list whose length doesn't grow with its images.

    Results are summed over at most ``MOST_INTERVALS`` intervals.
    """

    def __init__(self) -> None:
        self._entries: dict[str, LogEntry] = {}
        self._seen: set[tuple[int, int]] = set()
        self._intervals: Intervals[_Results] = Intervals(MOST_INTERVALS)
        self._whole = True

    def add(self, event: Event) -> None:
        match event:
            case ImageProcessed():
                self._add_result(event, _Results(event.time, event.time, 1, 0, event.input_bytes, event.output_bytes))
            case ImageFailed():
                self._add_result(event, _Results(event.time, event.time, 0, 1, 0, 0))
            case ImagesSettled():
                pass  # says no more than the results do, a hundred images at a time
            case _ if event.id in self._entries:
                pass
            case _ if len(self._entries) == MOST_ENTRIES:
                self._whole = False
            case _:
                self._entries[event.id] = LogEntry(time=event.time, event=type(event).__name__, text=sentence(event))

    def leave_out(self) -> None:
        """Remember that there are events which are not added."""
        self._whole = False

    def log(self) -> RequestLog:
        entries = [*self._entries.values(), *(each.entry() for each in self._intervals)]
        entries.sort(key=lambda entry: (entry.until or entry.time, _ORDER.get(entry.event, len(_ORDER))))
        return RequestLog(entries=entries, whole=self._whole)

    def _add_result(self, event: ImageProcessed | ImageFailed, result: _Results) -> None:
        if (event.index, event.attempt) in self._seen:
            return
        self._seen.add((event.index, event.attempt))
        self._intervals.add(result)


def sentence(event: Event) -> str:
    """What an event says, for people; of one that has no words of its own, what is said of its kind."""
    match event:
        case RequestCreated():
            return f"A CSV of {_count(event.rows, 'row')} with {_count(event.total, 'image')} was accepted"
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
            return f"{_count(event.missing, 'image')} without a result that counts asked for again"
        case WebhookAttempted():
            outcome = f"HTTP {event.status}" if event.status is not None else event.reason or "no answer"
            return f"Webhook, attempt {event.attempt}: {outcome} after {event.milliseconds} ms"
        case WebhookRedeliveryRequested():
            return "The webhook is to be sent again"
        case WebhookDelivered():
            return "The webhook's receiver confirmed"
        case WebhookFailed():
            return f"The webhook is given up after {_count(event.attempts, 'attempt')}: {event.reason}"
        case _:
            return (type(event).__doc__ or type(event).__name__).partition("\n")[0].removesuffix(".")


def _outcome(event: RequestCompleted | RequestStopped) -> str:
    failed = f", {event.failed:,} failed" if event.failed else ""
    return f"{event.succeeded:,} of {_count(event.total, 'image')} compressed{failed}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
