"""What happened to a request, folded from its records: in order, by whom, what came twice, what is missing.

Pure: no reading, no printing. Records may come in any order.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import groupby, pairwise
from typing import Self

from api.intervals import Intervals
from api.log_summary import sentence
from streams.event_log import WORKER
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
    RequestRetried,
    WebhookAttempted,
    WebhookDelivered,
    WebhookFailed,
    decode,
)
from streams.log_reader import Record
from streams.projections.webhooks.outcome import outcome_of

MOST_GROUPS = 20  # intervals of time over which the events about images are counted
MOST_LINES = 500_000
SILENCE = timedelta(seconds=10)
"""Without an event for so long, a request that is not done stands still, or waits for a slow image."""
MOST_RANGES = 10

# In which order what was written in the same millisecond is told.
_ORDER = {
    name: place
    for place, name in enumerate(
        ("ImageRequested", "RequestCreated", "ImageProcessed", "ImageFailed", "OutputCsvRequested", "RequestCompleted")
    )
}


@dataclass(frozen=True, slots=True)
class Logged:
    """An event and where it stands; ``written``: when, by the clock of ``worker``, who wrote it."""

    event: Event
    topic: str
    partition: int
    offset: int
    written: datetime
    worker: str

    @classmethod
    def of(cls, record: Record) -> "Logged":
        """Raises UnreadableEvent."""
        headers = dict(record.headers)
        return cls(
            decode(record.value),
            record.topic,
            record.partition,
            record.offset,
            datetime.fromtimestamp(record.timestamp / 1000, UTC),
            headers.get(WORKER, b"?").decode(errors="replace"),
        )


@dataclass(frozen=True)
class EventLine:
    """One event. ``repeat``: the same fact was written before."""

    logged: Logged
    repeat: bool

    @property
    def first(self) -> datetime:
        return self.logged.written

    def as_dict(self) -> dict[str, object]:
        event = self.logged.event
        return {
            "kind": "event",
            "written": self.logged.written,
            "event": type(event).__name__,
            "id": event.id,
            "subject": event.subject,
            "time": event.time,
            "topic": self.logged.topic,
            "partition": self.logged.partition,
            "offset": self.logged.offset,
            "worker": self.logged.worker,
            "traceparent": event.own_traceparent,
            "repeat": self.repeat,
            "text": sentence(event),
        }


@dataclass
class GroupLine:
    """The events of one kind about images that were written in an interval."""

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

    def as_dict(self) -> dict[str, object]:
        return {
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


@dataclass(frozen=True)
class Gap:
    """Something that should be there and is not. ``first``, ``last``: of a silence, between which events."""

    what: str
    text: str
    first: datetime | None = None
    last: datetime | None = None

    def as_dict(self) -> dict[str, object]:
        times = {"written": self.first, "until": self.last} if self.first else {}
        return {"kind": "gap", "gap": self.what, "text": self.text, **times}


Line = EventLine | GroupLine | Gap


class _Marks:
    """A set of images, in a bit each."""

    def __init__(self) -> None:
        self._bits = bytearray()

    def add(self, index: int) -> bool:
        """False: it was there already."""
        if index in self:
            return False
        if index >> 3 >= len(self._bits):
            self._bits.extend(bytes((index >> 3) + 1 - len(self._bits)))
        self._bits[index >> 3] |= 1 << (index & 7)
        return True

    def __contains__(self, index: int) -> bool:
        return index >> 3 < len(self._bits) and bool(self._bits[index >> 3] & 1 << (index & 7))


class _Groups:
    """The groups of one interval."""

    def __init__(self, group: GroupLine) -> None:
        self.first = group.first
        self.by_name = {group.name: group}

    def add(self, other: Self) -> None:
        self.first = min(self.first, other.first)
        for name, group in other.by_name.items():
            if name in self.by_name:
                self.by_name[name].add(group)
            else:
                self.by_name[name] = group


class RequestTrace:
    """One request's records, added one by one."""

    def __init__(self, *, every_line: bool) -> None:
        """``every_line``: a line for each event, instead of counts for those about images."""
        self._every_line = every_line
        self._lines: list[EventLine] = []
        self._groups: Intervals[_Groups] = Intervals(MOST_GROUPS)
        self._ids: set[str] = set()
        self._marks: dict[tuple[type[Event], int], _Marks] = {}
        self._seconds: set[int] = set()  # in which something was written
        self._runs: dict[int, datetime] = {}  # when each began
        self._ends: dict[int, datetime] = {}  # when each was completed or cancelled
        self._cancelled: set[int] = set()
        self._outputs: set[int] = set()
        self._completed: dict[int, RequestCompleted] = {}
        self._attempts: dict[str, dict[int, WebhookAttempted]] = {}
        self._outcomes: set[str] = set()
        self.created: RequestCreated | None = None
        self.image_offsets: dict[int, tuple[int, int]] = {}
        self.counts: Counter[str] = Counter()
        self.repeats = 0
        self.last_written = datetime.fromtimestamp(0, UTC)
        self.images_whole = True
        """Whether all that asked for images was added."""
        self.left_out: list[str] = []
        """What is not in it, and why."""

    @property
    def run(self) -> int:
        """The latest run: 0, and one more after each retry."""
        return max(self._runs, default=0)

    @property
    def ended_at(self) -> datetime | None:
        """When the latest run was completed."""
        return self._ends.get(self.run) if self.run in self._completed else None

    @property
    def state(self) -> str:
        if self.run in self._completed:
            return "completed"
        return "cancelled" if self.run in self._cancelled else "processing"

    def add(self, logged: Logged) -> None:
        event = logged.event
        name = type(event).__name__
        repeat = not self._is_new(event)
        self.counts[name] += 1
        self.repeats += repeat
        self._seconds.add(int(logged.written.timestamp()))
        self.last_written = max(self.last_written, logged.written)
        self._note(logged)
        if self._every_line or not isinstance(event, ImageRequested | ImageProcessed | ImageFailed | ImagesSettled):
            if len(self._lines) < MOST_LINES:
                self._lines.append(EventLine(logged, repeat))
            elif len(self._lines) == MOST_LINES:
                self.left_out.append(f"more than {MOST_LINES:,} events have no line")
            return
        group = GroupLine(name, logged.topic, logged.written, logged.written, 1, int(repeat))
        group.workers[logged.worker] = 1
        if isinstance(event, ImageProcessed):
            group.input_bytes, group.output_bytes = event.input_bytes, event.output_bytes
        self._groups.add(_Groups(group))

    def _is_new(self, event: Event) -> bool:
        if isinstance(event, ImageRequested | ImageProcessed | ImageFailed):
            return self._marks.setdefault((type(event), event.attempt), _Marks()).add(event.index)
        if event.id in self._ids:
            return False
        self._ids.add(event.id)
        return True

    def _note(self, logged: Logged) -> None:
        match event := logged.event:
            case RequestCreated():
                self.created = self.created or event
                self._runs.setdefault(0, logged.written)
                self._note_offsets(event.image_offsets)
            case RequestRetried():
                self._runs.setdefault(event.run, logged.written)
            case ImagesRequestedAgain():
                self._note_offsets(event.image_offsets)
            case OutputCsvRequested():
                self._outputs.add(event.run)
            case RequestCompleted():
                self._completed[event.run] = event
                self._ends[event.run] = logged.written
            case RequestCancelled():
                self._cancelled.add(event.run)
                self._ends.setdefault(event.run, logged.written)
            case WebhookAttempted():
                self._attempts.setdefault(event.webhook_id, {})[event.attempt] = event
            case WebhookDelivered() | WebhookFailed():
                self._outcomes.add(event.id)
            case _:
                pass

    def _note_offsets(self, offsets: dict[int, tuple[int, int]]) -> None:
        for partition, (first, last) in offsets.items():
            known = self.image_offsets.get(partition, (first, last))
            self.image_offsets[partition] = (min(known[0], first), max(known[1], last))

    def lines(self, now: datetime) -> list[Line]:
        """What is to be told, in order; gaps that are at no certain time come last."""
        told: list[EventLine | GroupLine] = [
            *self._lines,
            *(group for groups in self._groups for group in groups.by_name.values()),
        ]
        placed = [*told, *self._silences(now)]
        return [*sorted(placed, key=_place), *self._missing(now)]

    def _silences(self, now: datetime) -> Iterator[Gap]:
        """The times without an event in which the request was not done."""
        starts = [*sorted(self._runs.items()), (self.run + 1, now)]
        for (run, began), (_, following) in pairwise(starts):
            ended = self._ends.get(run, following)
            inside = sorted(second for second in self._seconds if began.timestamp() < second < ended.timestamp())
            times = [began, *(datetime.fromtimestamp(second, UTC) for second in inside), ended]
            for one, other in pairwise(times):
                if other - one > SILENCE:
                    seconds = (other - one).total_seconds()
                    yield Gap("silence", f"nothing was written for {seconds:.0f} s", one, other)

    def _missing(self, now: datetime) -> Iterator[Gap]:
        """What should have been written by now. While there is news, nothing should."""
        if self.created is None or now - self.last_written < SILENCE:
            return
        indexes = range(self.created.total)
        requested = [marks for (kind, _), marks in self._marks.items() if kind is ImageRequested]
        if self.images_whole and (unasked := [index for index in indexes if not any(index in m for m in requested)]):
            yield Gap("not-requested", f"never asked for: {_images(unasked)}")
        counting = [
            marks
            for (kind, attempt), marks in self._marks.items()
            if kind is ImageProcessed or (kind is ImageFailed and attempt >= self.run)
        ]
        waiting = [index for index in indexes if not any(index in marks for marks in counting)]
        if self.state == "processing":
            if waiting:
                yield Gap("no-result", f"no result: {_images(waiting)}")
            elif self.run not in self._outputs:
                yield Gap("no-output", "every image has its result, but nobody asked for the output CSV")
            else:
                yield Gap("not-completed", "the output CSV was asked for, but the request is not completed")
        yield from self._missing_webhooks()

    def _missing_webhooks(self) -> Iterator[Gap]:
        told = {
            event.run
            for attempts in self._attempts.values()
            for event in attempts.values()
            if event.kind == "request.completed"
        }
        for run, completed in self._completed.items():
            if completed.webhook_url and run not in told:
                yield Gap("no-webhook", f"nobody tried to tell the receiver that run {run} is completed")
        for webhook_id, attempts in self._attempts.items():
            last = attempts[max(attempts)]
            if unknown := sorted(set(range(1, last.attempt)) - attempts.keys()):
                yield Gap("webhook-attempts", f"{webhook_id}: no word of attempt {', '.join(map(str, unknown))}")
            outcome = outcome_of(last)
            if outcome is not None and outcome.id not in self._outcomes:
                yield Gap("no-outcome", f"{webhook_id}: what attempt {last.attempt} came to is not written")


def _place(line: Line) -> tuple[datetime, int, int]:
    assert line.first is not None
    match line:
        case EventLine():
            return line.first, _ORDER.get(type(line.logged.event).__name__, len(_ORDER)), line.logged.offset
        case GroupLine():
            return line.first, _ORDER.get(line.name, len(_ORDER)), 0
        case Gap():
            return line.first, len(_ORDER) + 1, 0


def _images(indexes: list[int]) -> str:
    """As in ``3 images (0, 7-8)``, with the first of many ranges."""
    ranges = []
    for _, run in groupby(enumerate(indexes), lambda pair: pair[1] - pair[0]):
        members = [index for _, index in run]
        ranges.append(f"{members[0]}" if len(members) == 1 else f"{members[0]}-{members[-1]}")
    shown = ", ".join(ranges[:MOST_RANGES]) + (", …" if len(ranges) > MOST_RANGES else "")
    return f"{len(indexes):,} image{'' if len(indexes) == 1 else 's'} ({shown})"
