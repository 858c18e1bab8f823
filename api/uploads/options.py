"""Image options of an upload: output format and quality."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self, get_args

from api.http.problems import Problem, ProblemCode
from streams.events.base import ImageFormat

FORMATS: tuple[ImageFormat, ...] = get_args(ImageFormat)
_QUALITY = re.compile(r"[0-9]{1,3}")


@dataclass(frozen=True)
class ImageOptions:
    """``format`` None: keep the format of each input image; ``quality`` is 1 to 100."""

    quality: int
    format: ImageFormat | None = None

    @classmethod
    def of(cls, fields: Mapping[str, Sequence[str]], default_quality: int) -> Self:
        """Parse form fields; the first value of a field wins. Raises Problem (422) for any invalid value."""
        qualities = [_quality(text) for text in fields.get("quality", ())]
        formats = [_format(text) for text in fields.get("format", ())]
        return cls(qualities[0] if qualities else default_quality, formats[0] if formats else None)


def _quality(text: str) -> int:
    if not _QUALITY.fullmatch(text) or not 1 <= int(text) <= 100:
        raise Problem(ProblemCode.BAD_QUALITY, "invalid quality: it must be an integer from 1 to 100")
    return int(text)


def _format(text: str) -> ImageFormat:
    name = text.lower()
    for known in FORMATS:
        if name == known or (name == "jpg" and known == "jpeg"):
            return known
    raise Problem(ProblemCode.BAD_FORMAT, f"invalid format: it must be one of {', '.join(FORMATS)}")
