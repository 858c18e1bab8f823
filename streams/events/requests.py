"""Events about a request as a whole."""

from typing import Annotated

from pydantic import Field

from streams.events.base import ByteSum, Count, Event, ImageFormat, Offsets, Owner, Quality, Run, Time, Url, WebhookKind


class RequestCreated(Event):
    """A CSV was accepted. Written after the last of its ImageRequested: before it, the request does not exist."""

    topic = "requests"

    total: Annotated[int, Field(ge=1, le=2**24, description="number of images")]
    rows: Annotated[int, Field(ge=1, le=2**24, description="number of CSV rows")]
    header: tuple[str, ...] = Field(description="the header cells of the uploaded CSV")
    body_sha256: str = Field(description="hash of the uploaded bytes, for Idempotency-Key")
    owner: Owner = Field("", description="name of the API key that made it; empty without keys")
    webhook_url: Url | None = None
    quality: Quality = Field(50, description="quality of its images")
    format: ImageFormat | None = Field(None, description="format of its images; absent: that of each input")
    webhook_events: tuple[WebhookKind, ...] = Field((), description="what the receiver is told beside the completion")
    image_offsets: Offsets = Field(
        default_factory=dict,
        description="partition of the image-requests topic → first and last offset that hold this request's images",
    )


class _RequestSummary(Event):
    """The sums over a request's images, and what a reader needs of its RequestCreated."""

    run: Annotated[Run, Field(description="0, and one more after each retry of the failed images")] = 0
    total: Count
    succeeded: Count
    failed: Count
    input_bytes: ByteSum
    output_bytes: ByteSum
    created_at: Time
    webhook_url: Url | None = None
    owner: Owner = ""

    @property
    def occurrence(self) -> str:
        return str(self.run)


class OutputCsvRequested(_RequestSummary):
    """Every image of a request has its result: its output CSV is to be written."""

    topic = "output_requests"

    header: tuple[str, ...]


class RequestCompleted(_RequestSummary):
    """Every image has its result and the output CSV can be downloaded."""

    topic = "requests"

    output_csv_url: str
    output_csv_path: str = Field(description="key in the storage")


class RequestCancelled(Event):
    """Somebody wants no more of a request's images. A run that completes all the same is complete."""

    topic = "requests"

    run: Annotated[Run, Field(description="the run that is stopped")] = 0

    @property
    def occurrence(self) -> str:
        return str(self.run)


class RequestRetried(Event):
    """Every image of a request that has not succeeded is to be processed again."""

    topic = "requests"

    run: Annotated[Run, Field(ge=1, description="the run that begins, which its images bear as their attempt")]
    created_at: Time = Field(description="when the request was created: what is about it is on the log from then on")

    @property
    def occurrence(self) -> str:
        return str(self.run)


class RequestStopped(_RequestSummary):
    """What the images of a cancelled request came to, when nothing of it is under way any more."""

    topic = "requests"


class RequestFilesRemoved(Event):
    """A finished request is older than ``RETENTION_DAYS``: its images and output CSVs are removed when this is read.

    That is final: no retry is accepted from some time before it, and none that comes after it counts.
    """

    topic = "requests"
