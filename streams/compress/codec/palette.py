"""Colour reduction, which makes a PNG or GIF small, and the check that the loss is invisible."""

import math
import sys
from collections.abc import Sequence
from functools import lru_cache

from PIL import Image, ImageChops, ImageCms, ImageFilter, ImageStat

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
# Banding: a block is smooth if its pixels differ from their neighbourhood by less than SMOOTH (of 255) on average; its
# mean moved visibly by VISIBLE_STEP: 4 of 255 are 1.6 in L*, 4 in a* and b*. Shares measured on glows and photos.
SMOOTH = 2
VISIBLE_STEP = 4
BANDING_SHARE = 0.02
MIN_AREA = 0.1
RING_WEIGHT = 0.2  # of pixels in rings a tenth of the image may be: edges and small shadows, no glow
STRIPS_PIXELS, STRIP = 1_000_000, 64  # of a larger image, strips of STRIP rows are compared


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
    return _with_entries(rgba, entries), bytes(entry[3] for entry in entries if entry[3] < 255)


def shared_exact(images: Sequence[Image.Image], colours: int) -> list[Image.Image] | None:
    """The same pixels (RGB) in one palette for all of the ``images``; None if it needs more than ``colours``.

    Pillow maps the pixels to a given palette with six bits of each sample, and may take a neighbour of their colour.
    """
    found: set[tuple[int, ...]] = set()
    for image in images:
        counted = image.getcolors(colours)
        if counted is None:
            return None
        found.update((*entry, 255) for _, entry in counted if isinstance(entry, tuple))
        if len(found) > colours:
            return None
    entries = sorted(found)
    return [_with_entries(image.convert("RGBA"), entries) for image in images]


def _with_entries(rgba: Image.Image, entries: Sequence[tuple[int, ...]]) -> Image.Image:
    """An RGBA image with a palette of ``entries``, which are all that it has."""
    index_of = {int.from_bytes(bytes(entry), sys.byteorder): index for index, entry in enumerate(entries)}
    indices = bytes(map(index_of.__getitem__, memoryview(rgba.tobytes()).cast("I")))
    indexed = Image.frombytes("P", rgba.size, indices)
    indexed.putpalette(bytes(value for entry in entries for value in entry[:3]))
    return indexed


def fewer_greys(image: Image.Image, quality: int) -> Image.Image | None:
    """An L image with a palette of fewer greys, which are fewer bytes; None if that would be seen at ``quality``."""
    if quality >= 100:
        return None
    image = image.convert("RGB")
    return with_palette(image, shared_palette([image], colours_at(quality) // 2), quality)


def fewer_levels(image: Image.Image, quality: int) -> Image.Image:
    """RGBA with its samples rounded to multiples of 5 at quality 50, of 1 at 100: what no palette can show unseen."""
    step = max(1, round(1 + (100 - quality) * 4 / 50))
    levels = [min(255, round(value / step) * step) for value in range(255)] + [255]
    return image.point(levels * 4)


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
    """Whether ``candidate`` is as near to ``image`` as ``quality`` asks: in all, in every block, and without rings in
    smooth places."""
    candidate = candidate.convert(image.mode)
    if shift(image, candidate) > _allowed(SHIFT_AT_50, quality):
        return False
    image, candidate = strips(image), strips(candidate)
    return error(image, candidate) <= _allowed(ERROR_AT_50, quality) and banding(image, candidate) <= BANDING_SHARE


def strips(image: Image.Image, pixels: int = STRIPS_PIXELS, rows: int = STRIP) -> Image.Image:
    """The image, or of a large one strips of ``rows`` from all over it, of ``pixels`` together."""
    share = pixels / (image.width * image.height)
    if share >= 1:
        return image
    count = max(1, int(image.height * share) // rows)
    step = image.height // count
    parts = [image.crop((0, n * step, image.width, n * step + min(rows, step))) for n in range(count)]
    sheet = image.crop((0, 0, image.width, sum(part.height for part in parts)))
    for n, part in enumerate(parts):
        sheet.paste(part, (0, n * parts[0].height))
    return sheet


def banding(image: Image.Image, candidate: Image.Image) -> float:
    """How much of the smooth places moved visibly in lightness or colour, over black or over white: 0 to 1.

    In CIE L*a*b*; blind to dithering, as the eye is. Textured blocks hide what would be a ring in a smooth one.
    """
    worst = 0.0
    for background in ("black", "white") if image.mode == "RGBA" else ("black",):
        before, after = (_over(one.convert(image.mode), background) for one in (image, candidate))
        grey = before.convert("L")
        texture = ImageChops.difference(grey, grey.filter(ImageFilter.BoxBlur(2))).reduce(BLOCK)
        smooth = texture.point([255] * SMOOTH + [0] * (256 - SMOOTH))
        moved = Image.new("L", smooth.size)
        pixels_moved = Image.new("L", grey.size)
        for one, other in zip(_in_lab(before).split(), _in_lab(after).split(), strict=True):
            moved = ImageChops.lighter(moved, ImageChops.difference(one.reduce(BLOCK), other.reduce(BLOCK)))
            pixels_moved = ImageChops.lighter(pixels_moved, ImageChops.difference(one, other))
        worst = max(worst, _share_seen(ImageChops.darker(moved, smooth), MIN_AREA))
        if image.mode == "RGBA":
            # Pixels that are partly transparent are never dithered, so that each one counts.
            near = ImageChops.difference(grey, grey.filter(ImageFilter.BoxBlur(1)))
            soft = image.getchannel("A").point([0] + [255] * 254 + [0])
            soft = ImageChops.darker(soft, near.point([255] * (SMOOTH + 1) + [0] * (255 - SMOOTH)))
            worst = max(worst, RING_WEIGHT * _share_seen(ImageChops.darker(pixels_moved, soft), 1))
    return worst


def _share_seen(moved: Image.Image, least: float) -> float:
    """Of what moved, or of the share ``least`` of the image if that is more, what moved visibly."""
    counts = moved.histogram()
    return sum(counts[VISIBLE_STEP:]) / max(1, sum(counts[1:]), moved.width * moved.height * least)


def _over(image: Image.Image, colour: str) -> Image.Image:
    if image.mode != "RGBA":
        return image.convert("RGB")
    page = Image.new("RGBA", image.size, colour)
    page.alpha_composite(image)
    return page.convert("RGB")


def _in_lab(image: Image.Image) -> Image.Image:
    converted = ImageCms.applyTransform(image, _srgb_to_lab())
    assert converted is not None, "not in place"
    return converted


@lru_cache(maxsize=1)
def _srgb_to_lab() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")


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
