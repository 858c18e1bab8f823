"""Events of the progress table: what was requested again, settled, recorded, evicted."""

from typing import Annotated, Literal

from pydantic import Field

from streams.events.base import Count, Event, Offsets, Run, Time, Url, WebhookKind


class ImagesRequestedAgain(Event):
    """Images that have no result that counts were asked for again: for a retry, or because nothing came of them."""

    topic = "progress_tasks"

    run: Annotated[Run, Field(description="the run that they are asked for in")] = 0
    heal: Annotated[
        Count, Field(description="0: the retry itself; else how often the run has been helped, this time included")
    ]
    missing: Count
    image_offsets: Offsets = Field(description="as in RequestCreated, the new ones included")

    @property
    def occurrence(self) -> str:
        return _of_run(self.run, str(self.heal))


class ImagesSettled(Event):
    """Some consecutive images of a request all have their result, and its receiver wants to hear of them."""

    topic = "progress_tasks"

    run: Run
    first: Annotated[int, Field(ge=0, lt=2**24, description="index of the first image")]
    count: Annotated[int, Field(ge=1, le=1000)]
    created_at: Time = Field(description="when the request was made")
    webhook_url: Url
    webhook_events: tuple[WebhookKind, ...]

    @property
    def occurrence(self) -> str:
        return f"{self.run}/{self.first}"


class RequestRecorded(Event):
    """The history has the completed request: its status can be answered from there."""

    topic = "progress_tasks"

    run: Run

    @property
    def occurrence(self) -> str:
        return str(self.run)


class RequestExpired(Event):
    """A finished request leaves the progress table; the second time, the mark that it was there leaves too.

    Or results leave it that no request is there for, as of an upload that was cut off.
    """

    topic = "progress_tasks"

    stage: Literal["done", "forgotten", "abandoned"]
    run: Annotated[Run, Field(description="the run that it leaves after: a later one keeps it there")] = 0
    images: Annotated[int, Field(ge=1, le=2**25)] | None = Field(
        None, description="of abandoned results, those of images with a lower index than that leave"
    )

    @property
    def occurrence(self) -> str:
        return _of_run(self.run, self.stage)


def _of_run(run: int, what: str) -> str:
    # As it was before there were runs, so that the ids of old events stay.
    return f"{run}/{what}" if run else what
