"""Quality by eye: the lowest of a few qualities at which an image still looks like its original."""

import io
from bisect import bisect_left
from collections.abc import Callable

from PIL import Image

from streams.compress.codec.colour import over_white
from streams.compress.codec.difference import SMALLEST, Original

# Where half as many chroma samples are used throughout; a search tries four of them.
QUALITIES = range(40, 86, 3)
# On 28 photos it makes as many JPEG bytes as quality 50, which differs by 0.3 to 5.2 there (docs/capacity.md).
MAX_DIFFERENCE = 2.9
# A larger image is judged, and tried, by tiles from all over it, on the grid of JPEG's blocks with halved chroma.
TILES, TILE, GRID = 6, 128, 16


def smallest_alike(image: Image.Image, encode: Callable[[Image.Image, int], bytes]) -> tuple[bytes, int]:
    """The encoded image, and its quality: the lowest of QUALITIES whose difference is at most MAX_DIFFERENCE.

    The highest one if all differ more, or if the image is smaller than SMALLEST. A large image is compared by tiles.
    Raises what ``encode`` raises, and RuntimeError.
    """
    if min(image.size) < SMALLEST:
        return encode(image, QUALITIES[-1]), QUALITIES[-1]
    sample = tiled(image)
    original = Original(_shown(sample))
    tried: dict[int, bytes] = {}

    def is_alike(quality: int) -> bool:
        tried[quality] = encode(sample, quality)
        return original.difference(_shown(Image.open(io.BytesIO(tried[quality])))) <= MAX_DIFFERENCE

    quality = QUALITIES[bisect_left(QUALITIES[:-1], x=True, key=is_alike)]
    if sample is image and quality in tried:
        return tried[quality], quality
    return encode(image, quality), quality


def tiled(image: Image.Image) -> Image.Image:
    """The image, or TILES * TILES tiles of a larger one."""
    width, height = image.size
    most = TILES * TILES
    if width * height <= most * TILE * TILE or min(width, height) < TILE:
        return image
    columns = min(TILES, width // TILE)
    rows = min(most // columns, height // TILE)
    columns = min(most // rows, width // TILE)
    sheet = image.crop((0, 0, columns * TILE, rows * TILE))
    for column in range(columns):
        left = _spread(width - TILE, column, columns)
        for row in range(rows):
            top = _spread(height - TILE, row, rows)
            sheet.paste(image.crop((left, top, left + TILE, top + TILE)), (column * TILE, row * TILE))
    return sheet


def _spread(length: int, position: int, count: int) -> int:
    return length * position // max(1, count - 1) // GRID * GRID


def _shown(image: Image.Image) -> Image.Image:
    return over_white(image).convert("RGB")
