"""Reconciliation of stalled requests: compares a request with the log, and plans what to publish again.

No stream processor can rule out that an event gets lost, so a request is not trusted to finish by itself. A request
without progress is stalled: its missing events are published again, in a limited number of rounds; after that its
missing images fail.
"""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from streams.events.images import ImageFailed, ImageRequested
from streams.events.progress import ProgressEvicted
from streams.events.requests import OutputCsvRequested, RequestCompleted, RequestStopped
from streams.request.lifecycle import RequestState, Tombstone
from streams.request.reactions import Tallies, completed_again, last_change, output_requested, stopped
from streams.request.tally import add_up, unsettled

TOMBSTONE_KEPT = timedelta(days=7)
"""A later redelivery is practically impossible."""
REASON = "lost"
"""The stable reason of an image that failed because its result was lost."""


@dataclass(frozen=True)
class Limits:
    """When a request is stalled, how many rounds of reconciliation it has, how long a finished one stays.

    ``webhook_overdue``: time from the last event about a pending webhook until it may have been forgotten.
    """

    stall_after: timedelta
    rounds: int
    grace: timedelta
    webhook_overdue: timedelta


@dataclass(frozen=True)
class RetryDue:
    """A retry whose images have not been requested. ``missing``: their indexes."""

    state: RequestState
    missing: Set[int]


@dataclass(frozen=True)
class Stalled:
    """A request whose ``missing`` images have had no result for too long. ``give_up``: its rounds are used up."""

    state: RequestState
    missing: Set[int]
    give_up: bool


Task = RetryDue | Stalled | OutputCsvRequested | RequestCompleted | RequestStopped | ProgressEvicted


def next_task(
    request_id: str, state: RequestState | Tombstone, tallies: Tallies, now: datetime, limits: Limits
) -> Task | None:
    """The task that a pass over the table finds for a request: an event to publish, or images to look for."""
    if isinstance(state, Tombstone):
        is_old = now - state.evicted_at > TOMBSTONE_KEPT
        return ProgressEvicted(request_id=request_id, stage="tombstone_dropped", run=state.run) if is_old else None
    if state.is_completed:
        age = now - state.updated_at
        if state.webhook == "pending":
            return completed_again(state, add_up(tallies(), state.run)) if age > limits.webhook_overdue else None
        return _evicted(state) if state.projected_run == state.run and age > limits.grace else None
    sums = add_up(tallies(), state.run)
    idle = now - last_change(state, sums)
    if state.is_cancelled:
        if idle <= limits.grace:
            return None
        return _evicted(state) if state.projected_run == state.run else stopped(state, sums)
    if state.requested_run < state.run and sums.settled < state.total:
        return RetryDue(state, _missing(state, tallies))
    if idle <= limits.stall_after:
        return None
    if sums.settled >= state.total:
        return output_requested(state, sums)
    return Stalled(state, _missing(state, tallies), give_up=state.rounds >= limits.rounds)


class LoggedResult(NamedTuple):
    """A result on the log. ``offset``: on its partition of image-results; ``image``: index in its request."""

    offset: int
    image: int
    run: int
    is_success: bool


class LoggedRequest(NamedTuple):
    """An ImageRequested on the log. ``image``: index in its request."""

    partition: int
    offset: int
    image: int
    run: int


@dataclass(frozen=True)
class Committed:
    """Offsets up to which progress has folded the results, and compress has handled each partition's requests."""

    results: int
    requests: Mapping[int, int]


@dataclass(frozen=True)
class Plan:
    """What to do about the missing images of a stalled request.

    ``republish``: offsets of results that were missed, so that every reader sees them again; of the images, by index:
    ``rerequest`` those that were lost, ``fail`` those that were lost too often, ``unknown`` (which have failed, too)
    those that the log knows nothing about, and ``wait`` for the others.
    """

    republish: Set[int]
    rerequest: Set[int]
    fail: Set[int]
    unknown: Set[int]
    wait: Set[int]


def counting(task: Stalled, results: Iterable[LoggedResult]) -> Iterable[LoggedResult]:
    """The results of missing images that count: a success always, a failure in the current run."""
    run = task.state.run
    return (result for result in results if result.image in task.missing and (result.is_success or result.run >= run))


def plan(
    task: Stalled, results: Iterable[LoggedResult], requests: Iterable[LoggedRequest], committed: Committed
) -> Plan:
    """Compare a stalled request with the log.

    ``committed`` was read before the ``results``, and these before the ``requests``: what compress had handled by then
    has its result among them. ``requests`` may be left out where every missing image has a result.
    """
    present: set[int] = set()
    missed: dict[tuple[int, bool], int] = {}
    for result in counting(task, results):
        present.add(result.image)
        if result.offset < committed.results:  # progress will read the others
            missed.setdefault((result.image, result.is_success), result.offset)
    handled: set[int] = set()
    queued: set[int] = set()
    for request in requests:
        # A queued request of an earlier run is no answer: compress may skip it as cancelled.
        is_queued = request.run >= task.state.run and request.offset >= committed.requests.get(request.partition, 0)
        (queued if is_queued else handled).add(request.image)
    missing = task.missing - present
    lost = missing & handled - queued
    return Plan(
        republish=set(missed.values()),
        rerequest=set() if task.give_up else lost,
        fail=lost if task.give_up else set(),
        unknown=missing - handled - queued,
        wait=present | missing & queued,
    )


def in_run(image: ImageRequested, state: RequestState) -> ImageRequested:
    """The request of an image in the current run: the same event each time."""
    return image.model_copy(update={"run": state.run, "time": state.requested_at, "owner": state.owner})


def failed_again(failure: ImageFailed, state: RequestState) -> ImageFailed:
    """The failure of an image that the current run, a retry of another reason, leaves as it is: the same each time."""
    update = {"run": state.run, "time": state.requested_at, "requested_at": state.requested_at}
    return failure.model_copy(update=update)


def given_up(image: ImageRequested, state: RequestState) -> ImageFailed:
    """The result of an image that was lost in every round."""
    detail = f"no result after {state.rounds} more requests"
    return ImageFailed.of(in_run(image, state), reason=REASON, detail=detail)


def unknown_image(state: RequestState, index: int) -> ImageFailed:
    """The result of an image that the log knows nothing about, and which so can't be requested again."""
    return ImageFailed(
        request_id=state.request_id,
        index=index,
        run=state.run,
        row=index,
        position=0,
        serial="?",
        product_name="?",
        input_url="",
        owner=state.owner,
        traceparent=state.traceparent,
        requested_at=state.requested_at,
        reason=REASON,
        detail="the log has no ImageRequested of this image",
    )


def _evicted(state: RequestState) -> ProgressEvicted:
    return ProgressEvicted(request_id=state.request_id, stage="evicted", run=state.run)


def _missing(state: RequestState, tallies: Tallies) -> Set[int]:
    return frozenset(unsettled(tallies(), state.total, state.run))
