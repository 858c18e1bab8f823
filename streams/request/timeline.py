"""The timeline of a request: its events in order, with repeats and gaps, as the log of the API and the trace show it.

Events may come in any order.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import groupby, pairwise
from typing import Self

import orjson

from streams.events.base import Event, Offsets, widen
from streams.events.images import ImageFailed, ImageProcessed, ImageRequested
from streams.events.progress import ImagesRerequested, ImagesSettled
from streams.events.requests import (
    OutputCsvRequested,
    RequestCancelled,
    RequestCompleted,
    RequestCreated,
    RequestRetried,
)
from streams.events.webhooks import WebhookAttempted, WebhookDelivered, WebhookFailed
from streams.request.intervals import Intervals
from streams.request.lifecycle import Lifecycle, Phase, advance
from streams.request.outcome import outcome_of
from streams.request.sentences import counted, sentence

MAX_INTERVALS = 20
"""Intervals of time over which events about images are counted."""
MAX_LINES = 500_000
SILENCE = timedelta(seconds=10)
"""Without an event for so long, a request under way is stalled, or waits for a slow image."""
MAX_RANGES = 10

# The order of events at the same time.
_ORDER = {
    name: rank
    for rank, name in enumerate(
        ("ImageRequested", "RequestCreated", "ImageProcessed", "ImageFailed", "OutputCsvRequested", "RequestCompleted")
    )
}


@dataclass(frozen=True, slots=True)
class Logged:
    """An event and its position on the log. ``at``: when it was written; ``worker``: the producer of the record."""

    event: Event
    at: datetime
    topic: str
    partition: int
    offset: int
    worker: str


@dataclass(frozen=True, slots=True)
class EventLine:
    """One event, kept as its JSON: of hundreds of thousands, each would take kilobytes otherwise.

    ``repeat``: another record has the same fact.
    """

    first: datetime
    name: str
    offset: int
    repeat: bool
    document: bytes

    @classmethod
    def of(cls, logged: Logged, *, repeat: bool) -> "EventLine":
        event, name = logged.event, type(logged.event).__name__
        document = {
            "kind": "event",
            "written": logged.at,
            "event": name,
            "id": event.id,
            "subject": event.subject,
            "time": event.time,
            "topic": logged.topic,
            "partition": logged.partition,
            "offset": logged.offset,
            "worker": logged.worker,
            "traceparent": event.own_traceparent,
            "repeat": repeat,
            "text": sentence(event),
        }
        # A copy: orjson 3.13 leaves each result in the 4 KiB that it was made in.
        kept = bytes(memoryview(orjson.dumps(document, option=orjson.OPT_UTC_Z)))
        return cls(logged.at, name, logged.offset, repeat, kept)

    @property
    def text(self) -> str:
        text: str = orjson.loads(self.document)["text"]
        return text


@dataclass
class GroupLine:
    """The events of one type about images in an interval; ``input_bytes`` and ``output_bytes`` of repeats, too."""

    name: str
    topic: str
    first: datetime
    last: datetime
    count: int = 0
    repeats: int = 0
    input_bytes: int = 0
    output_bytes: int = 0
    workers: Counter[str] = field(default_factory=Counter)

    def add(self, other: Self) -> None:
        self.first = min(self.first, other.first)
        self.last = max(self.last, other.last)
        self.count += other.count
        self.repeats += other.repeats
        self.input_bytes += other.input_bytes
        self.output_bytes += other.output_bytes
        self.workers += other.workers

    @property
    def document(self) -> bytes:
        document = {
            "kind": "events",
            "written": self.first,
            "until": self.last,
            "event": self.name,
            "topic": self.topic,
            "count": self.count,
            "repeats": self.repeats,
            "inputBytes": self.input_bytes,
            "outputBytes": self.output_bytes,
            "workers": dict(self.workers),
        }
        return orjson.dumps(document, option=orjson.OPT_UTC_Z)


@dataclass(frozen=True)
class Gap:
    """Something missing. ``first``, ``last``: of a silence, the events before and after it."""

    what: str
    text: str
    first: datetime | None = None
    last: datetime | None = None

    @property
    def document(self) -> bytes:
        times = {"written": self.first, "until": self.last} if self.first else {}
        document = {"kind": "gap", "gap": self.what, "text": self.text, **times}
        return orjson.dumps(document, option=orjson.OPT_UTC_Z)


Line = EventLine | GroupLine | Gap
"""Each has a ``document``: its line in the output of `trace --json`."""


class _Marks:
    """A set of images, in a bit each."""

    def __init__(self) -> None:
        self._bits = bytearray()

    def add(self, index: int) -> bool:
        """Whether it is new."""
        if index in self:
            return False
        if index >> 3 >= len(self._bits):
            self._bits.extend(bytes((index >> 3) + 1 - len(self._bits)))
        self._bits[index >> 3] |= 1 << (index & 7)
        return True

    def __contains__(self, index: int) -> bool:
        return index >> 3 < len(self._bits) and bool(self._bits[index >> 3] & 1 << (index & 7))


class Interval:
    """The events about images in an interval, by type."""

    def __init__(self, group: GroupLine) -> None:
        self.first = group.first
        self.groups = {group.name: group}

    def add(self, other: Self) -> None:
        self.first = min(self.first, other.first)
        for name, group in other.groups.items():
            if name in self.groups:
                self.groups[name].add(group)
            else:
                self.groups[name] = group


class Timeline:
    """Folds one request's events. The number of lines doesn't grow with its images, unless ``every_image`` has one."""

    def __init__(
        self,
        *,
        every_image: bool = False,
        with_repeats: bool = True,
        max_intervals: int = MAX_INTERVALS,
        max_lines: int = MAX_LINES,
    ) -> None:
        self._every_image = every_image
        self._with_repeats = with_repeats
        self._max_lines = max_lines
        self.events: list[EventLine] = []
        self.intervals: Intervals[Interval] = Intervals(max_intervals)
        self._life = Lifecycle()
        self._ids: set[str] = set()
        self._marks: dict[tuple[type[Event], int], _Marks] = {}
        self._seconds: set[int] = set()  # with an event
        self._began: dict[int, datetime] = {}  # of each run
        self._ended: dict[int, datetime] = {}  # of each run: its completion, or else its cancellation
        self._outputs: set[int] = set()
        self._receivers: dict[int, str | None] = {}  # of each completed run
        self._attempts: dict[str, dict[int, WebhookAttempted]] = {}
        self._outcomes: set[str] = set()
        self.created: RequestCreated | None = None
        self.image_offsets: Offsets = {}
        self.counts: Counter[str] = Counter()
        self.repeats = 0
        self.last_at = datetime.fromtimestamp(0, UTC)
        self.has_all_images = True
        """Whether every ImageRequested was added."""
        self.left_out: list[str] = []
        """The missing parts, and why they are missing."""

    @property
    def run(self) -> int:
        return self._life.run

    @property
    def phase(self) -> Phase:
        return self._life.phase

    @property
    def ended_at(self) -> datetime | None:
        """When the current run was completed."""
        return self._ended.get(self.run) if self._life.is_completed else None

    def add(self, logged: Logged) -> None:
        event = logged.event
        name = type(event).__name__
        repeat = not self._is_new(event)
        self.counts[name] += 1
        self.repeats += repeat
        if repeat and not self._with_repeats:
            return
        self._seconds.add(int(logged.at.timestamp()))
        self.last_at = max(self.last_at, logged.at)
        self._note(logged)
        if self._every_image or not isinstance(event, ImageRequested | ImageProcessed | ImageFailed | ImagesSettled):
            if len(self.events) < self._max_lines:
                self.events.append(EventLine.of(logged, repeat=repeat))
            elif (limit := f"more than {self._max_lines:,} events have no line") not in self.left_out:
                self.left_out.append(limit)
            return
        group = GroupLine(name, logged.topic, logged.at, logged.at, 1, int(repeat))
        group.workers[logged.worker] = 1
        if isinstance(event, ImageProcessed):
            group.input_bytes, group.output_bytes = event.input_bytes, event.output_bytes
        self.intervals.add(Interval(group))

    def _is_new(self, event: Event) -> bool:
        if isinstance(event, ImageRequested | ImageProcessed | ImageFailed):
            return self._marks.setdefault((type(event), event.run), _Marks()).add(event.index)
        if event.id in self._ids:
            return False
        self._ids.add(event.id)
        return True

    def _note(self, logged: Logged) -> None:
        self._life = advance(self._life, logged.event)
        match event := logged.event:
            case RequestCreated():
                self.created = self.created or event
                self._began.setdefault(0, logged.at)
                self._note_offsets(event.image_offsets)
            case RequestRetried():
                self._began.setdefault(event.run, logged.at)
            case ImagesRerequested():
                self._note_offsets(event.image_offsets)
            case OutputCsvRequested():
                self._outputs.add(event.run)
            case RequestCompleted():
                self._receivers[event.run] = event.webhook_url
                self._ended[event.run] = logged.at
            case RequestCancelled():
                self._ended.setdefault(event.run, logged.at)
            case WebhookAttempted():
                self._attempts.setdefault(event.webhook_id, {})[event.attempt] = event
            case WebhookDelivered() | WebhookFailed():
                self._outcomes.add(event.id)
            case _:
                pass

    def _note_offsets(self, offsets: Offsets) -> None:
        for partition, (first, last) in offsets.items():
            widen(self.image_offsets, partition, first, last)

    def lines(self, now: datetime) -> list[Line]:
        """All lines in order; gaps without a time come last."""
        groups = (group for interval in self.intervals for group in interval.groups.values())
        placed: list[Line] = [*self.events, *groups, *self._silences(now)]
        return [*sorted(placed, key=_place), *self._missing(now)]

    def _silences(self, now: datetime) -> Iterator[Gap]:
        """The times without an event in which a run was under way."""
        starts = [*sorted(self._began.items()), (self.run + 1, now)]
        for (run, began), (_, following) in pairwise(starts):
            ended = self._ended.get(run, following)
            inside = sorted(second for second in self._seconds if began.timestamp() < second < ended.timestamp())
            times = [began, *(datetime.fromtimestamp(second, UTC) for second in inside), ended]
            for one, other in pairwise(times):
                if other - one > SILENCE:
                    seconds = (other - one).total_seconds()
                    yield Gap("silence", f"no event for {seconds:.0f} s", one, other)

    def _missing(self, now: datetime) -> Iterator[Gap]:
        """The events that should be there by now: none while there still come some."""
        if self.created is None or now - self.last_at < SILENCE:
            return
        indexes = range(self.created.total)
        requested = [marks for (kind, _), marks in self._marks.items() if kind is ImageRequested]
        if self.has_all_images and (
            not_requested := [index for index in indexes if not any(index in m for m in requested)]
        ):
            yield Gap("not-requested", f"never requested: {_images(not_requested)}")
        counting = [
            marks
            for (kind, run), marks in self._marks.items()
            if kind is ImageProcessed or (kind is ImageFailed and run >= self.run)
        ]
        waiting = [index for index in indexes if not any(index in marks for marks in counting)]
        if self.phase is Phase.PROCESSING:
            if waiting:
                yield Gap("no-result", f"no result: {_images(waiting)}")
            elif self.run not in self._outputs:
                yield Gap("no-output", "every image has its result, but the output CSV was not requested")
            else:
                yield Gap("not-completed", "the output CSV was requested, but the request is not completed")
        yield from self._missing_webhooks()

    def _missing_webhooks(self) -> Iterator[Gap]:
        attempted = {
            event.run
            for attempts in self._attempts.values()
            for event in attempts.values()
            if event.kind == "request.completed"
        }
        for run, receiver in self._receivers.items():
            if receiver and run not in attempted:
                yield Gap("no-webhook", f"no delivery attempt for the completion of run {run}")
        for webhook_id, attempts in self._attempts.items():
            last = attempts[max(attempts)]
            if unknown := sorted(set(range(1, last.attempt)) - attempts.keys()):
                yield Gap(
                    "webhook-attempts", f"{webhook_id}: no event about delivery attempt {', '.join(map(str, unknown))}"
                )
            outcome = outcome_of(last)
            if outcome is not None and outcome.id not in self._outcomes:
                yield Gap("no-outcome", f"{webhook_id}: delivery attempt {last.attempt} has no outcome")


def _place(line: Line) -> tuple[datetime, int, int]:
    assert line.first is not None
    match line:
        case EventLine():
            return line.first, _ORDER.get(line.name, len(_ORDER)), line.offset
        case GroupLine():
            return line.first, _ORDER.get(line.name, len(_ORDER)), 0
        case Gap():
            return line.first, len(_ORDER) + 1, 0


def _images(indexes: list[int]) -> str:
    """As in ``3 images (0, 7-8)``, with the first of many ranges."""
    ranges = []
    for _, consecutive in groupby(enumerate(indexes), lambda pair: pair[1] - pair[0]):
        members = [index for _, index in consecutive]
        ranges.append(f"{members[0]}" if len(members) == 1 else f"{members[0]}-{members[-1]}")
    shown = ", ".join(ranges[:MAX_RANGES]) + (", …" if len(ranges) > MAX_RANGES else "")
    return f"{counted(len(indexes), 'image')} ({shown})"
