"""Facts about requests in the progress table: images re-requested or settled, request projected or evicted."""

from typing import Annotated, Literal

from pydantic import Field

from streams.events.base import Count, Event, Offsets, Owner, Run, Time, Url, WebhookKind


class ImagesRerequested(Event):
    """Images without a valid result were requested again: for a retry, or because the request was stalled."""

    topic = "progress"

    run: Annotated[Run, Field(description="the run in which they were requested")] = 0
    cause: Literal["retry", "stalled"]
    round: Annotated[Count, Field(description="round of reconciliation of the run, from 1; 0 for a retry")] = 0
    missing: Annotated[Count, Field(description="number of images requested again")]
    image_offsets: Offsets = Field(
        description="as in RequestCreated: after a retry, of the new records only; in a round, of the earlier ones, too"
    )

    @property
    def occurrence(self) -> str:
        return f"{self.run}/{self.round}"


class ImagesSettled(Event):
    """A range of consecutive images is settled, and the receiver subscribed to image events."""

    topic = "progress"

    run: Run
    first: Annotated[int, Field(ge=0, lt=2**24, description="index of the first image")]
    count: Annotated[int, Field(ge=1, le=1000)]
    created_at: Time = Field(description="creation of the request")
    webhook_url: Url
    webhook_events: tuple[WebhookKind, ...]
    owner: Owner = ""

    @property
    def occurrence(self) -> str:
        return f"{self.run}/{self.first}"


class RequestProjected(Event):
    """The history has the end of a request's run: its status can be read from there."""

    topic = "progress"

    run: Run

    @property
    def occurrence(self) -> str:
        return str(self.run)


class ProgressEvicted(Event):
    """A finished request is evicted from the progress table, and a week later its tombstone is dropped.

    Also evicts orphaned results: those without a request, as of an aborted upload.
    """

    topic = "progress"

    stage: Literal["evicted", "tombstone_dropped", "orphaned"]
    run: Annotated[Run, Field(description="the run after which it is evicted: a later one keeps the request")] = 0
    images: Annotated[int, Field(ge=1, le=2**25)] | None = Field(
        None, description="of orphaned results, those of images with a lower index are evicted"
    )

    @property
    def occurrence(self) -> str:
        return f"{self.run}/{self.stage}"
