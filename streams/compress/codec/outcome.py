"""What can come of shrinking one image: a smaller image, or a stable reason why there is none.

Free of Pillow, so that the process that only talks to decoders does not load it.
"""

from dataclasses import dataclass, field
from enum import StrEnum

OUTPUT_FORMATS = ("jpeg", "png", "webp", "gif", "tiff", "avif")
MAX_DETAIL_LENGTH = 500  # characters of a rejection's detail
# How the file of a decoder's results begins: the number of the image that it has begun with, big-endian.
TAKEN_BYTES = 8


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
    """This image can't be shrunk, and trying again would not help; ``detail`` is for people."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Shrunk:
    """A finished image. ``width`` and ``height`` are in pixels, as displayed. ``pages`` is how many the input has, if
    only its first was made. ``truncated``: the input ends too early, and what is missing is clear or white.

    ``decode_seconds`` and ``encode_seconds`` say what it took, and nothing about the image.
    """

    data: bytes
    format: str
    width: int
    height: int
    kept_original: bool
    pages: int | None = None
    truncated: bool = False
    decode_seconds: float = field(default=0.0, compare=False)
    encode_seconds: float = field(default=0.0, compare=False)
