"""Fewer colours: what makes a PNG or a GIF small, and the guard against seeing it."""

import math
import sys
from collections.abc import Sequence

from PIL import Image, ImageChops, ImageStat

MAX_COLOURS = 256
# Pixels that a palette is chosen from: half as many lost rare colours, twice as many took twice the time.
SAMPLE_PIXELS = 65_536
# k-means ends once fewer sample pixels than this change sides: ten times fewer took up to 2.5 times as long
# and lowered the error by 0.1.
SETTLED_PIXELS = SAMPLE_PIXELS // 200
# Root mean square error (of 255) up to which missing colours can't be seen: no dithering then, which
# made a smooth picture up to four times larger.
UNSEEN_ERROR = 2.0
# Root mean square error allowed at quality 50; JPEG of that quality was measured at 5 to 7.6 on photos.
ERROR_AT_50 = 6.0
# Furthest that the mean colour of a block may move at quality 50: a small red thing must stay red.
SHIFT_AT_50 = 24.0
BLOCK = 8


def exact(image: Image.Image) -> tuple[Image.Image, bytes] | None:
    """The same pixels with a palette, and its alpha values for tRNS; None for more than 256 colours.

    Pillow's own quantisers are not exact for RGBA, whatever the number of colours.
    """
    rgba = image.convert("RGBA")
    counted = rgba.getcolors(MAX_COLOURS)
    if counted is None:
        return None
    # tRNS may end before the opaque entries, so those come last; frequent ones first among equals.
    ranked = sorted(((entry[3] == 255, -count, entry) for count, entry in counted if isinstance(entry, tuple)))
    entries = [entry for _, _, entry in ranked]
    index_of = {int.from_bytes(bytes(entry), sys.byteorder): index for index, entry in enumerate(entries)}
    indices = bytes(map(index_of.__getitem__, memoryview(rgba.tobytes()).cast("I")))
    reduced = Image.frombytes("P", rgba.size, indices)
    reduced.putpalette(bytes(value for entry in entries for value in entry[:3]))
    return reduced, bytes(entry[3] for entry in entries if entry[3] < 255)


def reduced(image: Image.Image, quality: int) -> Image.Image | None:
    """An L, RGB or RGBA image with a palette of its own; None if that would be seen at ``quality``."""
    if quality >= 100:
        return None
    if image.mode == "RGBA":
        # The one quantiser of Pillow that knows alpha (libimagequant is not in its wheels).
        candidate = image.quantize(MAX_COLOURS, Image.Quantize.FASTOCTREE)
        return candidate if faithful(image, candidate, quality) else None
    # Greys fit into a palette as they are: only fewer of them are fewer bytes.
    colours = MAX_COLOURS if image.mode == "RGB" else colours_at(quality) // 2
    image = image.convert("RGB")
    return with_palette(image, shared_palette([image], colours), quality)


def colours_at(quality: int) -> int:
    """How many colours a quality is worth, where every colour fewer makes the file smaller: 128 at 50."""
    return max(16, min(MAX_COLOURS, round(quality * MAX_COLOURS / 100)))


def shared_palette(images: Sequence[Image.Image], colours: int) -> Image.Image:
    """A palette for all of the ``images`` (RGB, of one size), as the image of mode P that carries it."""
    share = SAMPLE_PIXELS / (len(images) * images[0].width * images[0].height)
    width, height = (max(1, round(side * min(1.0, share) ** 0.5)) for side in images[0].size)
    sheet = Image.new("RGB", (width, height * len(images)))
    for index, image in enumerate(images):
        # Nearest: an averaged sample would have lost the rare colours.
        sheet.paste(image.resize((width, height), Image.Resampling.NEAREST), (0, index * height))
    return sheet.quantize(colours, Image.Quantize.MEDIANCUT, kmeans=SETTLED_PIXELS)


def with_palette(image: Image.Image, palette: Image.Image, quality: int) -> Image.Image | None:
    """``image`` in the colours of ``palette``, dithered if need be; None if that would be seen."""
    plain = image.quantize(palette=palette, dither=Image.Dither.NONE)
    plain_is_faithful = faithful(image, plain, quality)
    if plain_is_faithful and error(image, plain) <= UNSEEN_ERROR:
        return plain
    dithered = image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    if faithful(image, dithered, quality):
        return dithered
    return plain if plain_is_faithful else None


def faithful(image: Image.Image, candidate: Image.Image, quality: int) -> bool:
    """Whether ``candidate`` is as near to ``image`` as ``quality`` asks, in all and in every block."""
    near = error(image, candidate) <= _allowed(ERROR_AT_50, quality)
    return near and shift(image, candidate) <= _allowed(SHIFT_AT_50, quality)


def error(image: Image.Image, candidate: Image.Image) -> float:
    """Root mean square difference over all bands, of 255."""
    pairs = zip(_visible_bands(image, image.mode), _visible_bands(candidate, image.mode), strict=True)
    squares = [ImageStat.Stat(ImageChops.difference(*pair)).rms[0] ** 2 for pair in pairs]
    return math.sqrt(sum(squares) / len(squares))


def shift(image: Image.Image, candidate: Image.Image) -> float:
    """The furthest that any block's mean moved in any band, of 255; blind to dithering, as the eye is."""
    pairs = zip(_visible_bands(image, image.mode), _visible_bands(candidate, image.mode), strict=True)
    moved = (ImageChops.difference(before.reduce(BLOCK), after.reduce(BLOCK)) for before, after in pairs)
    return max(highest(difference) for difference in moved)


def highest(band: Image.Image) -> int:
    """The largest value in an image of one band."""
    return max(value for value, count in enumerate(band.histogram()) if count)


def _allowed(at_50: float, quality: int) -> float:
    """Falls evenly to nothing at quality 100."""
    return at_50 * (100 - quality) / 50


def _visible_bands(image: Image.Image, mode: str) -> list[Image.Image]:
    """The bands of ``image`` in ``mode``, colours weighted by how much of them is seen."""
    bands = list(image.convert(mode).split())
    if mode != "RGBA":
        return bands
    alpha = bands.pop()
    return [*(ImageChops.multiply(band, alpha) for band in bands), alpha]
