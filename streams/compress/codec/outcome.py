"""Outcome of compressing one image: a smaller image, or a rejection with a stable reason.

Doesn't import Pillow, so that the pool's process need not load it.
"""

from dataclasses import dataclass, field
from enum import StrEnum

OUTPUT_FORMATS = ("jpeg", "png", "webp", "gif", "tiff", "avif")
MAX_DETAIL_LENGTH = 500  # characters of a rejection's detail
# Header of the file with a decoder's results: the number of the image that it has started, big-endian.
NUMBER_BYTES = 8


class Reason(StrEnum):
    """Why an image was rejected. The codes are written into events: never rename one."""

    NOT_AN_IMAGE = "not_an_image"
    WEB_PAGE = "web_page"
    UNSUPPORTED_FORMAT = "unsupported_format"
    TRUNCATED_IMAGE = "truncated_image"
    BROKEN_IMAGE = "broken_image"
    TOO_MANY_PIXELS = "too_many_pixels"
    TOO_MANY_FRAMES = "too_many_frames"
    CANNOT_ENCODE = "cannot_encode"
    DECODE_TIMEOUT = "decode_timeout"
    DECODE_HUNG = "decode_hung"
    DECODE_CRASHED = "decode_crashed"
    DECODE_MEMORY = "decode_memory"


class ImageRejected(Exception):
    """The image can't be compressed, and a retry would not help; ``detail`` is for people."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Shrunk:
    """A compressed image. ``width`` and ``height`` are in pixels, as displayed.

    ``quality``: that of the encoder, None for the original. ``pages``: number of pages of the input, if only the first
    was compressed. ``truncated``: the input ends too early; its missing part is transparent or white.
    ``decode_seconds`` and ``encode_seconds`` are not compared.
    """

    data: bytes
    format: str
    width: int
    height: int
    kept_original: bool
    quality: int | None
    pages: int | None = None
    truncated: bool = False
    decode_seconds: float = field(default=0.0, compare=False)
    encode_seconds: float = field(default=0.0, compare=False)
