"""Events about a request as a whole."""

from typing import Annotated

from pydantic import Field

from streams.events.base import (
    AnyQuality,
    ByteSum,
    Count,
    Event,
    ImageFormat,
    Offsets,
    Owner,
    ReasonCode,
    Run,
    Side,
    Time,
    Url,
    WebhookKind,
)


class RequestCreated(Event):
    """A CSV was accepted. Written after its last ImageRequested is acknowledged: before it, there is no request."""

    topic = "requests"

    total: Annotated[int, Field(ge=1, le=2**24, description="number of images")]
    rows: Annotated[int, Field(ge=1, le=2**24, description="number of CSV rows")]
    header: tuple[str, ...] = Field(description="the header cells of the uploaded CSV")
    body_sha256: str = Field(description="hash of the uploaded bytes, for Idempotency-Key")
    owner: Owner = Field("", description="name of the API key that created it; empty without keys")
    webhook_url: Url | None = None
    quality: AnyQuality = Field(50, description="quality of its images; auto: chosen for each")
    format: ImageFormat | None = Field(None, description="output format of its images; absent: that of each input")
    max_width: Side | None = Field(None, description="largest width (pixels) of its results; absent: no limit")
    max_height: Side | None = Field(None, description="largest height (pixels) of its results; absent: no limit")
    webhook_events: tuple[WebhookKind, ...] = Field((), description="further message types for the receiver")
    image_offsets: Offsets = Field(
        default_factory=dict,
        description="partition of the image-requests topic → first and last offset of its images",
    )


class _RequestSummary(Event):
    """The sums over a request's images, and the fields of its RequestCreated that consumers need."""

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
    """All images of a request are settled: its output CSV is to be written."""

    topic = "output_requests"


class RequestCompleted(_RequestSummary):
    """All images are settled, and the output CSV can be downloaded."""

    topic = "requests"

    output_csv_url: str
    output_csv_path: str = Field(description="key in the storage")
    failures: dict[ReasonCode, Count] | None = Field(
        None,
        max_length=1000,
        description="failed images by reason, of reasons that the writer doesn't know as `other`; absent: not counted",
    )


class RequestCancelled(Event):
    """A client cancelled the request, or an internal error did. A run that completes nevertheless is complete."""

    topic = "requests"

    run: Annotated[Run, Field(description="the cancelled run")] = 0
    reason: Annotated[str, Field(max_length=1000)] | None = Field(
        None, description="the internal error; absent if a client cancelled the request"
    )

    @property
    def occurrence(self) -> str:
        return str(self.run)


class RequestRetried(Event):
    """A client retried the request: every image that has not succeeded is processed again, or those of a reason."""

    topic = "requests"

    run: Annotated[Run, Field(ge=1, description="the new run")]
    created_at: Time = Field(description="creation of the request: its events are on the log from then on")
    reason: ReasonCode | None = Field(
        None, description="only images that failed for this reason or have no result; the others fail again as before"
    )

    @property
    def occurrence(self) -> str:
        # Two retries of one run that differ in their reason are two facts; the first on the log is carried out.
        return str(self.run) if self.reason is None else f"{self.run}/{self.reason}"


class RequestStopped(_RequestSummary):
    """The final state of a cancelled request, when no image of it is in flight any more."""

    topic = "requests"

    expired: bool = Field(False, description="whether it was deleted before: images in flight are deleted now")


class RequestExpired(Event):
    """The request finished longer ago than ``RETENTION_DAYS``, or a client deleted it: its files are deleted when this
    event is consumed.

    That is final: a retry after it is ignored.
    """

    topic = "requests"


class RequestForgotten(RequestExpired):
    """A client had the request deleted and forgotten: read models remove its product names and URLs, and stay so.

    A request that has expired may be forgotten later. The events before this one keep both.
    """

    created_at: Time = Field(description="creation of the request: its events are on the log from then on")
