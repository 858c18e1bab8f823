"""Pillow's encoders, to bytes."""

import io
from typing import Any

from PIL import Image

# Of 100: more takes many times as long for a few percent.
LOSSLESS_EFFORT = 20


def saved(image: Image.Image, pillow_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, pillow_format, **options)
    return buffer.getvalue()


def webp_options(quality: int) -> dict[str, Any]:
    """Quality 100 is lossless: lossy WebP always halves the resolution of colours."""
    if quality >= 100:
        return {"lossless": True, "quality": LOSSLESS_EFFORT, "method": 1}
    return {"quality": quality, "method": 4}
