"""The options of an upload that say how its images are to be made: the fields ``format`` and ``quality``."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Self, get_args

from api.problems import Problem
from streams.events import ImageFormat

FORMATS: tuple[ImageFormat, ...] = get_args(ImageFormat)
_QUALITY = re.compile(r"[0-9]{1,3}")


@dataclass(frozen=True)
class ImageOptions:
    """``format`` None: each image stays in its own; ``quality`` is 1 to 100."""

    quality: int
    format: ImageFormat | None = None

    @classmethod
    def of(cls, fields: Mapping[str, Sequence[str]], default_quality: int) -> Self:
        """From the values given for each field, of which the first counts. Raises Problem (422) for any that is bad."""
        qualities = [_quality(text) for text in fields.get("quality", ())]
        formats = [_format(text) for text in fields.get("format", ())]
        return cls(qualities[0] if qualities else default_quality, formats[0] if formats else None)


def _quality(text: str) -> int:
    if not _QUALITY.fullmatch(text) or not 1 <= int(text) <= 100:
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY, "bad-quality", "quality can't be used: it is a whole number from 1 to 100"
        )
    return int(text)


def _format(text: str) -> ImageFormat:
    name = text.lower()
    for known in FORMATS:
        if name == known or (name == "jpg" and known == "jpeg"):
            return known
    raise Problem(
        HTTPStatus.UNPROCESSABLE_ENTITY, "bad-format", f"format can't be used: it is one of {', '.join(FORMATS)}"
    )
