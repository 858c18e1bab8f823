"""Requests for property tests: their events, and the same events in any order, repeated."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from random import Random

from hypothesis import strategies as st

from streams.events.base import Event
from streams.events.images import ImageFailed, ImageProcessed
from streams.events.progress import ImagesRerequested, ProgressEvicted
from streams.events.requests import RequestCancelled, RequestCreated, RequestExpired, RequestForgotten, RequestRetried
from streams.events.webhooks import WebhookDelivered, WebhookFailed
from tests.support.examples import NOON, REQUEST_ID, created, failed, processed, requested

RECEIVER = "https://receiver.example/hook"

Result = ImageProcessed | ImageFailed

# A result of every kind is made once and copied: making thousands of them would take most of a test's time.
PROCESSED, FAILED = processed(requested()), failed(requested())

# By their seed: drawn number by number, thousands of images would be more than hypothesis is willing to draw.
RANDOMS = st.builds(Random, st.integers(0, 2**32))
TOTALS = st.integers(1, 12) | st.sampled_from([999, 1000, 1001, 1999, 2000, 2001, 3000]) | st.integers(1, 3000)
FAILING = st.sampled_from([0.0, 0.1, 0.5, 1.0])


def result(index: int, *, succeeds: bool, run: int = 0, input_bytes: int = 0, output_bytes: int = 0) -> Result:
    common = {"index": index, "run": run, "time": NOON + timedelta(hours=run, seconds=index + 1)}
    if succeeds:
        return PROCESSED.model_copy(update={**common, "input_bytes": input_bytes, "output_bytes": output_bytes})
    return FAILED.model_copy(update=common)


def cancelled(run: int = 0, minutes: int = 10) -> RequestCancelled:
    return RequestCancelled(request_id=REQUEST_ID, run=run, time=NOON + timedelta(hours=run, minutes=minutes))


def retried(run: int) -> RequestRetried:
    return RequestRetried(request_id=REQUEST_ID, run=run, created_at=NOON, time=NOON + timedelta(hours=run))


def evicted(stage: str, run: int = 0) -> ProgressEvicted:
    return ProgressEvicted.model_validate(
        {"request_id": REQUEST_ID, "time": NOON + timedelta(days=8), "stage": stage, "run": run}
    )


def expired() -> RequestExpired:
    return RequestExpired(request_id=REQUEST_ID, time=NOON + timedelta(days=30))


def forgotten() -> RequestForgotten:
    return RequestForgotten(request_id=REQUEST_ID, created_at=NOON, time=NOON + timedelta(days=31))


def webhook_outcome(kind: type[WebhookDelivered] | type[WebhookFailed], minutes: int, run: int = 0) -> Event:
    fields = {"request_id": REQUEST_ID, "webhook_id": "msg_1", "attempts": 1, "reason": "http_500", "run": run}
    return kind.model_validate({**fields, "time": NOON + timedelta(minutes=minutes)})


def rerequested(run: int, number: int) -> ImagesRerequested:
    return ImagesRerequested(
        request_id=REQUEST_ID,
        run=run,
        cause="stalled" if number else "retry",
        round=number,
        missing=1,
        image_offsets={0: (run, number)},
        time=NOON + timedelta(hours=run, minutes=number),
    )


@dataclass
class Story:
    """A request, the results of its images in the first run, and of the failed ones in the second."""

    total: int
    first: list[Result] = field(default_factory=list)
    second: list[Result] = field(default_factory=list)

    @property
    def created(self) -> RequestCreated:
        return created(total=self.total, rows=self.total, owner="shop", webhook_url=RECEIVER)

    @property
    def retry(self) -> list[RequestRetried]:
        return [retried(1)] if self.second else []

    @property
    def events(self) -> list[Event]:
        return [self.created, *self.first, *self.retry, *self.second]

    def expected(self) -> tuple[int, int, int, int]:
        """Succeeded, failed, input and output bytes: counted image by image, without chunks and bits."""
        final = {result.index: result for result in (*self.first, *self.second)}
        done = [result for result in final.values() if isinstance(result, ImageProcessed)]
        return (
            len(done),
            len(final) - len(done),
            sum(result.input_bytes for result in done),
            sum(result.output_bytes for result in done),
        )


def story(random: Random, total: int, *, failing: float, retry: bool) -> Story:
    def outcome(index: int, run: int) -> Result:
        size = random.choice((0, 1, 10**6, 2**40 - 1))
        succeeds = random.random() >= failing
        return result(index, run=run, succeeds=succeeds, input_bytes=size, output_bytes=size // 3)

    told = Story(total, [outcome(index, 0) for index in range(total)])
    if retry:
        told.second = [outcome(result.index, 1) for result in told.first if isinstance(result, ImageFailed)]
    return told


def shuffled(random: Random, events: Sequence[Event], repeats: float) -> list[Event]:
    """The events in some order, some of them repeated.

    But nothing of the requests topic before the RequestCreated, which is the first of its request there.
    """
    deck = [*events, *random.choices(events, k=int(len(events) * repeats))]
    random.shuffle(deck)
    on_requests = [place for place, event in enumerate(deck) if event.topic == "requests"]
    creations = [place for place in on_requests if isinstance(deck[place], RequestCreated)]
    if creations:
        deck[on_requests[0]], deck[creations[0]] = deck[creations[0]], deck[on_requests[0]]
    return deck
