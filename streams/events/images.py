"""Events about one image of a request."""

from typing import Annotated, Any, Self

from pydantic import Field

from streams.events.base import (
    AnyQuality,
    Bytes,
    Count,
    Event,
    ImageFormat,
    Milliseconds,
    Owner,
    ProductName,
    Quality,
    Run,
    Side,
    Time,
)
from streams.events.lanes import partition_of_image


class _ImageEvent(Event):
    """An event about one image: the ``index``-th (from 0) URL of its request, in the order of the CSV."""

    index: Annotated[int, Field(ge=0, lt=2**24)]
    run: Annotated[Run, Field(description="0, and one more for each retry of the failed images")] = 0

    @property
    def subject(self) -> str:
        return f"{self.request_id}/{self.index}"

    @property
    def occurrence(self) -> str:
        return str(self.run)


class ImageRequested(_ImageEvent):
    """An image is to be fetched and compressed."""

    topic = "image_requests"

    row: Annotated[Count, Field(description="index of the CSV row, from 0, without the header")]
    position: Annotated[Count, Field(description="index of the URL in its row, from 0")]
    serial: str
    product_name: ProductName
    input_url: str
    cells: tuple[str, ...] | None = Field(None, description="all cells of the row, in its first image only")
    quality: AnyQuality = Field(50, description="output quality; auto: chosen for the image")
    format: ImageFormat | None = Field(None, description="output format; absent: that of the input")
    max_width: Side | None = Field(None, description="largest width (pixels) of the result; absent: no limit")
    max_height: Side | None = Field(None, description="largest height (pixels) of the result; absent: no limit")
    bulk: bool = Field(False, description="whether it is in the bulk lane, as an image of a large request")
    owner: Owner = Field("", description="as in RequestCreated")

    @property
    def key(self) -> bytes:
        return self.subject.encode()

    def partition_among(self, partitions: int) -> int:
        return partition_of_image(self.key, bulk=self.bulk, partitions=partitions)


class _ImageResult(_ImageEvent):
    """Result of an ImageRequested, with its fields, so that a consumer needs no join."""

    topic = "image_results"

    row: Count
    position: Count
    serial: str
    product_name: ProductName
    input_url: str
    cells: tuple[str, ...] | None = None
    owner: Owner = ""
    requested_at: Time = Field(description="time of its ImageRequested: the same in every repetition")

    @classmethod
    def of(cls, request: ImageRequested, **outcome: Any) -> Self:
        """The result of ``request``; ``outcome``: the fields that a result adds."""
        return cls(
            request_id=request.request_id,
            index=request.index,
            run=request.run,
            row=request.row,
            position=request.position,
            serial=request.serial,
            product_name=request.product_name,
            input_url=request.input_url,
            cells=request.cells,
            owner=request.owner,
            traceparent=request.traceparent,
            requested_at=request.time,
            **outcome,
        )


class ImageProcessed(_ImageResult):
    """An image was compressed and stored."""

    output_url: str
    output_path: str = Field(description="key in the storage")
    input_bytes: Bytes
    output_bytes: Bytes
    format: str = Field(description="format of the stored image: jpeg, png, webp, gif, tiff or avif")
    width: Count
    height: Count
    sha256: str = Field(description="hash of the stored bytes")
    kept_original: bool = Field(
        False, description="whether the original is stored, as compression did not make it smaller"
    )
    quality: Quality | None = Field(None, description="quality that it was encoded with; absent for an original")
    pages: Count | None = Field(None, description="number of pages of the input, if only the first one was processed")
    truncated: bool = Field(
        False, description="whether the input is truncated; its missing part is transparent or white"
    )
    fetch_ms: Milliseconds = 0
    shrink_ms: Milliseconds = 0
    store_ms: Milliseconds = 0

    @property
    def milliseconds(self) -> int:
        """Duration of fetching, compressing and storing."""
        return self.fetch_ms + self.shrink_ms + self.store_ms


class ImageFailed(_ImageResult):
    """An image can't be processed; the rest of its request continues."""

    reason: str = Field(description="stable code")
    detail: str = Field("", description="explanation for people")
