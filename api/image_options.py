"""The options of an upload that say how its images are to be made: the fields ``format`` and ``quality``."""

import re
from collections.abc import Mapping
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
    def of(cls, fields: Mapping[str, str], default_quality: int) -> Self:
        """From the form fields or the query; an empty one counts as absent. Raises Problem (422)."""
        return cls(_quality(fields.get("quality", ""), default_quality), _format(fields.get("format", "")))


def _quality(text: str, default: int) -> int:
    if not text:
        return default
    if not _QUALITY.fullmatch(text) or not 1 <= int(text) <= 100:
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY, "bad-quality", "quality can't be used: it is a whole number from 1 to 100"
        )
    return int(text)


def _format(text: str) -> ImageFormat | None:
    if not text:
        return None
    name = text.lower()
    for known in FORMATS:
        if name == known or (name == "jpg" and known == "jpeg"):
            return known
    raise Problem(
        HTTPStatus.UNPROCESSABLE_ENTITY, "bad-format", f"format can't be used: it is one of {', '.join(FORMATS)}"
    )
