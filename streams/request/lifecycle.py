"""The life of a request: the only place that knows runs, completion, cancellation and expiry.

A request is processed in runs: 0, and one more for each retry. A run ends when it is completed, or when it was
cancelled and nothing of it is under way any more (stopped). A run that was both completed and cancelled is complete:
its receiver may have been notified.

Every fact about a run is kept as a maximum, so neither order nor repetition of the events matters; the current run
and the phase are derived from the facts. Events about a request are ignored until its RequestCreated has been applied
and after its eviction. The results of its images are not part of its state, but of its tallies.
"""

from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import TypeVar

from streams.events.base import Event, WebhookKind
from streams.events.progress import ImagesRerequested, ProgressEvicted, RequestProjected
from streams.events.requests import (
    RequestCancelled,
    RequestCompleted,
    RequestCreated,
    RequestExpired,
    RequestForgotten,
    RequestRetried,
    RequestStopped,
)
from streams.events.webhooks import WebhookDelivered, WebhookFailed, WebhookRedeliveryRequested
from streams.request.webhook import DeliveryStatus, WebhookState, delivery_status


class Phase(StrEnum):
    """How far a request is, in the words of its status."""

    PROCESSING = "processing"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Completion:
    """The completion of a run. ``failed``: number of images that its output CSV has as failed."""

    run: int
    at: datetime
    failed: int
    output_csv_url: str
    output_csv_path: str

    @classmethod
    def of(cls, event: RequestCompleted) -> "Completion":
        return cls(event.run, event.time, event.failed, event.output_csv_url, event.output_csv_path)

    def supersedes(self, other: "Completion | None") -> bool:
        # A success may come after the completion of its run, which then completes again with fewer failures.
        return other is None or (self.run, -self.failed) > (other.run, -other.failed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifecycle:
    """Which runs of a request began, and how they ended; of each kind of fact the latest run."""

    retried_run: int = 0
    retried_at: datetime | None = None
    retried_reason: str | None = None
    cancelled_run: int | None = None
    stopped_run: int | None = None
    completion: Completion | None = None
    is_expired: bool = False
    is_forgotten: bool = False

    @property
    def run(self) -> int:
        """The current run. A retry that had not ended when the request expired doesn't count."""
        if not self.is_expired:
            return self.retried_run
        completed = None if self.completion is None else self.completion.run
        ended = [run for run in (completed, self.cancelled_run) if run is not None]
        return max(ended, default=self.retried_run)

    @property
    def is_completed(self) -> bool:
        return self.completion is not None and self.completion.run >= self.run

    @property
    def is_cancelled(self) -> bool:
        return self.cancelled_run is not None and self.cancelled_run >= self.run and not self.is_completed

    @property
    def end(self) -> Completion | int | None:
        """The end of the current run: its completion, or the run if it was stopped; None while it is under way."""
        if self.is_completed:
            return self.completion
        return self.stopped_run if self.stopped_run is not None and self.stopped_run >= self.run else None

    @property
    def is_ended(self) -> bool:
        return self.is_expired or self.end is not None

    def is_past(self, run: int) -> bool:
        """Whether a run is completed, or a later one has begun: its output is no longer needed."""
        return (self.completion is not None and self.completion.run >= run) or self.retried_run > run

    @property
    def phase(self) -> Phase:
        if self.is_expired:
            return Phase.EXPIRED
        if self.is_completed:
            return Phase.COMPLETED
        return Phase.CANCELLED if self.is_cancelled else Phase.PROCESSING


L = TypeVar("L", bound=Lifecycle)


def advance(life: L, event: Event) -> L:
    """The lifecycle with an event's fact about a run; itself where the event adds none."""
    match event:
        case RequestRetried() if event.run > life.retried_run:
            return replace(life, retried_run=event.run, retried_at=event.time, retried_reason=event.reason)
        case RequestCancelled() if life.cancelled_run is None or event.run > life.cancelled_run:
            return replace(life, cancelled_run=event.run)
        case RequestStopped() if life.stopped_run is None or event.run > life.stopped_run:
            return replace(life, stopped_run=event.run)
        case RequestCompleted() if (completion := Completion.of(event)).supersedes(life.completion):
            return replace(life, completion=completion)
        case RequestForgotten() if not life.is_forgotten:
            return replace(life, is_expired=True, is_forgotten=True)
        case RequestExpired() if not life.is_expired:
            return replace(life, is_expired=True)
        case _:
            return life


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestState(Lifecycle):
    """A request, but for the results of its images.

    ``projected_run``: the latest run whose end the history has. ``requested_run``: the latest run whose images were
    requested; ``rounds``: how often images of that run were requested again because the request was stalled.
    ``image_offsets``: partition of the image-requests topic → first and last offset of this request's images.
    """

    request_id: str
    total: int
    owner: str
    created_at: datetime
    updated_at: datetime
    webhook_url: str | None = None
    webhook_events: tuple[WebhookKind, ...] = ()
    traceparent: str | None = None
    delivery: DeliveryStatus | None = None
    projected_run: int | None = None
    requested_run: int = 0
    rounds: int = 0
    image_offsets: dict[int, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, event: RequestCreated) -> "RequestState":
        return cls(
            request_id=event.request_id,
            total=event.total,
            owner=event.owner,
            created_at=event.time,
            updated_at=event.time,
            webhook_url=event.webhook_url,
            webhook_events=event.webhook_events,
            traceparent=event.traceparent,
            image_offsets=event.image_offsets,
        )

    @property
    def requested_at(self) -> datetime:
        """When the images of the current run were requested."""
        return self.retried_at or self.created_at

    @property
    def webhook(self) -> WebhookState | None:
        """Delivery status of the webhook about the current run's completion; None once its receiver is forgotten."""
        if self.delivery is None or self.delivery.run < self.run or self.is_forgotten:
            return None
        return self.delivery.state


@dataclass(frozen=True, slots=True)
class Tombstone:
    """Mark of an evicted request: a late redelivery must not resurrect it. ``run``: the run it was evicted after."""

    run: int
    evicted_at: datetime


def evolve(state: RequestState | Tombstone | None, event: Event) -> RequestState | Tombstone | None:
    """The state after an event; the same object where the event changes nothing. None: no such request."""
    if state is None:
        return RequestState.of(event) if isinstance(event, RequestCreated) else None
    if isinstance(state, Tombstone):
        is_dropped = (
            isinstance(event, ProgressEvicted) and event.stage == "tombstone_dropped" and state.run <= event.run
        )
        return None if is_dropped else state
    match event:
        case ProgressEvicted(stage="evicted") if state.run <= event.run:
            return Tombstone(event.run, event.time)
        case RequestProjected() if state.projected_run is None or event.run > state.projected_run:
            return replace(state, projected_run=event.run)
        case RequestStopped():
            return advance(state, event)
        case RequestCompleted() | WebhookDelivered() | WebhookFailed() | WebhookRedeliveryRequested():
            return _updated(_with_delivery(advance(state, event), delivery_status(event)), event)
        case RequestForgotten() if not state.is_forgotten:
            return _updated(replace(advance(state, event), webhook_url=None, webhook_events=()), event)
        case RequestRetried() | RequestCancelled() | RequestExpired():
            return _updated(advance(state, event), event)
        case ImagesRerequested():
            return _updated(_with_images_requested(state, event), event)
        case _:
            return state


def must_restore(state: RequestState | Tombstone | None, event: Event) -> bool:
    """Whether an event is the retry of a request that was evicted before, whose state is to be folded from the log."""
    if not isinstance(event, RequestRetried):
        return False
    return state is None or (isinstance(state, Tombstone) and state.run < event.run)


def _updated(state: RequestState, event: Event) -> RequestState:
    return replace(state, updated_at=event.time) if event.time > state.updated_at else state


def _with_delivery(state: RequestState, delivery: DeliveryStatus | None) -> RequestState:
    if delivery is None or (state.delivery is not None and delivery <= state.delivery):
        return state
    return replace(state, delivery=delivery)


def _with_images_requested(state: RequestState, event: ImagesRerequested) -> RequestState:
    if (event.run, event.round) <= (state.requested_run, state.rounds):
        return state
    return replace(state, requested_run=event.run, rounds=event.round, image_offsets=event.image_offsets)
