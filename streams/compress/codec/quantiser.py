"""PNGs of at most 256 colours, by libvips: it quantises RGB and RGBA with libimagequant (its fork under a BSD licence).

A third of the time of Pillow's median cut with k-means, and the only one of the two that is good at partial alpha.
"""

import io
from collections.abc import Iterator
from itertools import dropwhile, islice

import pyvips
from PIL import Image

from streams.compress.codec import palette

# libvips' CPU effort, 1 to 10: 1 takes half of the time of 4, and is refused more often by the guard. A large image has
# the time for the least one, and for one attempt.
EFFORT, MIN_EFFORT, LARGE_PIXELS = 4, 1, 10_000_000
# A larger image is tried in strips of a few rows first, so that few attempts are made on the whole.
SAMPLE_PIXELS, SAMPLE_ROWS = 300_000, 32
MAX_QUALITY = 100  # of the quantiser

pyvips.cache_set_max(0)  # it would keep the pixels of the last images


def quantised(image: Image.Image, quality: int, compression: int) -> bytes | None:
    """An RGB or RGBA image as a PNG with a palette; None if that would be seen at ``quality``.

    ``compression`` is zlib's level. Raises RuntimeError.
    """
    if quality >= 100:
        return None
    attempts = _attempts(quality)
    if image.width * image.height > 2 * SAMPLE_PIXELS:
        sample = palette.strips(image, SAMPLE_PIXELS, SAMPLE_ROWS)
        attempts = dropwhile(
            lambda one: not palette.faithful(sample, _opened(_png(sample, *one, 1)), quality), attempts
        )
    for attempt in islice(attempts, 1 if image.width * image.height > LARGE_PIXELS else None):
        data = _png(image, *attempt, compression)
        if palette.faithful(image, _opened(data), quality):
            return data
    return None


def _attempts(quality: int) -> Iterator[tuple[int, bool]]:
    """The qualities of the quantiser and whether it dithers, smaller results first: dithering deflates worst."""
    yield quality, False
    yield (quality + MAX_QUALITY) // 2, False
    yield MAX_QUALITY, False
    yield MAX_QUALITY, True


def _png(image: Image.Image, quality: int, dither: bool, compression: int) -> bytes:
    bands = len(image.getbands())
    effort = EFFORT if image.width * image.height <= LARGE_PIXELS else MIN_EFFORT
    try:
        pixels = pyvips.Image.new_from_memory(image.tobytes(), image.width, image.height, bands, "uchar")
        data: bytes = pixels.copy(interpretation="srgb").pngsave_buffer(
            palette=True, Q=quality, effort=effort, dither=float(dither), compression=compression, keep="none"
        )
    except pyvips.Error as error:
        raise RuntimeError(f"libvips: {error}") from error
    return data


def _opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=["PNG"])
