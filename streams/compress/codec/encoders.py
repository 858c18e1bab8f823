"""Pillow's encoders, to bytes."""

import io
from typing import Any

from PIL import Image


def saved(image: Image.Image, pillow_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, pillow_format, **options)
    return buffer.getvalue()
