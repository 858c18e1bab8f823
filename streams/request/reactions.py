"""Reactions: the events that are due because a request's images have their results.

The due events depend on the state and on the images of the event, not on a change by it: the process
may have died between storing the state and publishing the reaction, and the redelivered event changes nothing. A
reaction has the same id every time.
"""

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

from streams.events.base import Event
from streams.events.images import ImageFailed, ImageProcessed
from streams.events.progress import ImagesSettled
from streams.events.requests import (
    OutputCsvRequested,
    RequestCompleted,
    RequestCreated,
    RequestRetried,
    RequestStopped,
)
from streams.request.lifecycle import RequestState, Tombstone
from streams.request.tally import IMAGES_PER_CHUNK, Sums, Tally, add_up, chunk_of, chunk_range, from_milliseconds

IMAGES_PER_MESSAGE = 100
"""Consecutive images that a receiver is notified of together."""
assert IMAGES_PER_CHUNK % IMAGES_PER_MESSAGE == 0, "the images of a message are in one chunk"

Tallies = Callable[[], Iterable[Tally]]
"""Reads the tallies of all chunks of a request lazily, in order."""


def reactions(
    event: Event, state: RequestState | Tombstone | None, tally: Tally | None, tallies: Tallies
) -> Iterator[ImagesSettled | OutputCsvRequested]:
    """The events that are due once ``event`` is applied.

    ``state`` and ``tally``, that of the event's image if it is about one, are those after the event. All ``tallies``
    are only read when that one is full.
    """
    if not isinstance(state, RequestState):
        return
    match event:
        case ImageProcessed() | ImageFailed() if tally is not None:
            yield from _images_settled(state, tally, event.index // IMAGES_PER_MESSAGE * IMAGES_PER_MESSAGE)
            number, _ = chunk_of(event.index)
            if not _is_full(tally, number, state):
                return
        case RequestCreated():  # may come after the results
            for number, each in enumerate(tallies()):
                for first in chunk_range(number, state.total)[::IMAGES_PER_MESSAGE]:
                    yield from _images_settled(state, each, first)
        case RequestRetried():
            pass
        case _:
            return
    yield from _output_due(state, tallies)


def output_requested(state: RequestState, sums: Sums) -> OutputCsvRequested:
    return OutputCsvRequested(**_summary(state, sums))


def stopped(state: RequestState, sums: Sums) -> RequestStopped:
    """The summary of a cancelled request; later than every earlier event about it."""
    return RequestStopped(**_summary(state, sums) | {"time": last_change(state, sums)}, expired=state.is_expired)


def completed_again(state: RequestState, sums: Sums) -> RequestCompleted | None:
    """The completion of a run once more, the same event; None while the output CSV lacks a late success."""
    completion = state.completion
    if completion is None or sums.failed != completion.failed:
        return None
    return RequestCompleted(
        **_summary(state, sums) | {"time": completion.at},
        output_csv_url=completion.output_csv_url,
        output_csv_path=completion.output_csv_path,
    )


def last_change(state: RequestState, sums: Sums) -> datetime:
    return max(state.updated_at, from_milliseconds(sums.updated_ms))


def _images_settled(state: RequestState, tally: Tally, first: int) -> Iterator[ImagesSettled]:
    if state.webhook_url is None or not state.webhook_events:
        return
    run = state.run
    _, position = chunk_of(first)
    count = min(IMAGES_PER_MESSAGE, state.total - first)
    if all(tally.is_settled(position + offset, run) for offset in range(count)):
        yield ImagesSettled(
            request_id=state.request_id,
            run=run,
            first=first,
            count=count,
            created_at=state.created_at,
            webhook_url=state.webhook_url,
            webhook_events=state.webhook_events,
            owner=state.owner,
            traceparent=state.traceparent,
            time=from_milliseconds(tally.updated_ms),
        )


def _output_due(state: RequestState, tallies: Tallies) -> Iterator[OutputCsvRequested]:
    completion = state.completion if state.is_completed else None
    if state.is_cancelled or state.is_expired or (completion is not None and not completion.failed):
        return
    full = []
    for number, tally in enumerate(tallies()):
        if not _is_full(tally, number, state):
            return
        full.append(tally)
    sums = add_up(full, state.run)
    # A success may come after the completion, from a worker that had lost its partition: the output CSV lacks it.
    if completion is None or sums.failed < completion.failed:
        yield output_requested(state, sums)


def _is_full(tally: Tally, number: int, state: RequestState) -> bool:
    return tally.settled(state.run) >= len(chunk_range(number, state.total))


def _summary(state: RequestState, sums: Sums) -> dict[str, Any]:
    return {
        "request_id": state.request_id,
        "run": state.run,
        "total": state.total,
        "succeeded": sums.succeeded,
        "failed": sums.failed,
        "input_bytes": sums.input_bytes,
        "output_bytes": sums.output_bytes,
        "created_at": state.created_at,
        "webhook_url": state.webhook_url,
        "owner": state.owner,
        "traceparent": state.traceparent,
        # When the last image was settled: the same each time.
        "time": max(state.requested_at, from_milliseconds(sums.updated_ms)),
    }
