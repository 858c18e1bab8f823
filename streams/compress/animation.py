"""Images that move, and documents of several pages: reading all frames, and writing them as they were."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image, TiffImagePlugin

from streams.compress import palette
from streams.compress.colour import as_displayed
from streams.compress.outcome import ImageRejected, Reason

# More is a film; and the cost of a frame is not only in its pixels.
MAX_FRAMES = 2_000
MAX_PLAYS = 65_535  # the loop counts of GIF and WebP have 16 bits

GIF_KEEP, GIF_CLEAR = 1, 2  # disposal methods (GIF89a, section 23)
GIF_MAX_COLOURS = 255  # one index is left for "as in the frame before"
HALF_OPAQUE = 128
APNG_KEEP, APNG_REPLACE = 0, 0  # dispose_op NONE and blend_op SOURCE (PNG 3rd edition, 11.3.6)
# TIFF 6.0, NewSubfileType: bit 0 is a smaller version of another page, bit 2 a mask for one.
SUBFILE_TYPE, SUBORDINATE = 254, 0b101


@dataclass(frozen=True)
class Frames:
    """What was in a file: one image, the pages of a TIFF, or an animation.

    ``durations`` are in milliseconds, one for each image. ``plays`` is how often the animation runs, 0 for
    ever. With ``poster`` the first image is not part of the animation: it is what an APNG shows where
    animations can't be shown.
    """

    images: Sequence[Image.Image]
    durations: Sequence[float] = (0,)
    plays: int = 0
    poster: bool = False

    @property
    def first(self) -> Image.Image:
        return self.images[0]

    @property
    def animated(self) -> bool:
        return len(self.images) > 1

    def in_one_mode(self) -> "Frames":
        """With all images in the poorest mode that shows each of them, which animations need."""
        modes = {image.mode for image in self.images}
        alpha = not modes.isdisjoint(("LA", "RGBA"))
        mode = "RGBA" if alpha else "RGB" if "RGB" in modes else "L"
        return replace(self, images=[image if image.mode == mode else image.convert(mode) for image in self.images])


def read_frames(image: Image.Image, max_pixels: int, *, only_first: bool) -> Frames:
    """Decode ``image``, having counted the pixels of everything that will be decoded from the headers.

    Raises ImageRejected for too many pixels or frames.
    """
    positions = _positions(image, max_pixels, only_first=only_first)
    if len(positions) == 1 and image.format != "TIFF":
        image.load()
        return Frames([as_displayed(image)])
    images: list[Image.Image] = []
    durations: list[float] = []
    for position in positions:
        image.seek(position)
        # A frame of a GIF may reach beyond the canvas that the header promised: Pillow enlarges it.
        _check_pixels(image.width * image.height * len(positions), max_pixels)
        image.load()
        durations.append(float(image.info.get("duration", 0)))
        # A copy, because seeking changes the image, and needs the metadata that as_displayed drops.
        images.append(as_displayed(image.copy()))
    poster = bool(getattr(image, "default_image", False)) and len(images) > 2
    return Frames(images, durations, _plays(image), poster)


def write_gif(frames: Frames, quality: int) -> bytes:
    """One palette for all frames; only what changes from frame to frame is stored."""
    frames = frames.in_one_mode()
    clear = frames.first.mode == "RGBA"
    colours = [image.convert("RGB") for image in frames.images]
    indexed = _in_few_colours(colours, quality)
    options: dict[str, Any] = {"optimize": True}
    if clear:
        table = indexed[0].getpalette() or []
        transparent = len(table) // 3
        for image, frame in zip(indexed, frames.images, strict=True):
            hidden = frame.getchannel("A").point([255] * HALF_OPAQUE + [0] * (256 - HALF_OPAQUE))
            image.putpalette([*table, 0, 0, 0])
            image.paste(transparent, mask=hidden)
        options["transparency"] = transparent
    if frames.animated:
        options |= {
            "save_all": True,
            "append_images": indexed[1:],
            "duration": list(frames.durations),
            # A pixel can only become clear again if the frame before is taken away first.
            "disposal": GIF_CLEAR if clear else GIF_KEEP,
        }
        if frames.plays != 1:
            # The count in a GIF is of repetitions, as gif2webp and the browsers read it.
            options["loop"] = max(0, frames.plays - 1)
    return saved(indexed[0], "GIF", **options)


def write_webp_animation(frames: Frames, quality: int) -> bytes:
    frames = frames.in_one_mode()
    return saved(
        frames.first,
        "WEBP",
        save_all=True,
        append_images=frames.images[1:],
        duration=[round(duration) for duration in frames.durations],
        loop=min(frames.plays, MAX_PLAYS),
        background=(0, 0, 0, 0),
        quality=quality,
        method=4,
    )


def write_apng(frames: Frames, quality: int) -> bytes:
    """In one palette where it can't be seen; with partial transparency in full colour."""
    frames = frames.in_one_mode()
    images = frames.images
    if frames.first.mode == "RGB" and quality < 100:
        table = palette.shared_palette(images, palette.MAX_COLOURS)
        indexed = [palette.with_palette(image, table, quality) for image in images]
        images = [image for image in indexed if image is not None]
        if len(images) < len(indexed):
            images = frames.images
    return saved(
        images[0],
        "PNG",
        save_all=True,
        append_images=images[1:],
        default_image=frames.poster,
        duration=list(frames.durations[frames.poster :]),
        loop=frames.plays,
        disposal=APNG_KEEP,
        blend=APNG_REPLACE,
        optimize=True,
    )


def write_avif_sequence(frames: Frames, **options: Any) -> bytes:
    frames = frames.in_one_mode()
    durations = [round(duration) for duration in frames.durations]
    return saved(frames.first, "AVIF", save_all=True, append_images=frames.images[1:], duration=durations, **options)


def write_tiff(frames: Frames) -> bytes:
    """Lossless: a TIFF is a master copy or a scan, and few of its readers know JPEG in TIFF.

    All pages are kept: a scanned contract without its second page is not a smaller contract.
    """
    bilevel = all(image.mode == "1" for image in frames.images)
    images = [image if bilevel or image.mode != "1" else image.convert("L") for image in frames.images]
    options: dict[str, Any] = {"compression": "group4"} if bilevel else {"compression": "tiff_adobe_deflate"}
    if not bilevel:
        # TIFF 6.0, section 14: store each sample's difference to its left neighbour.
        options["tiffinfo"] = {TiffImagePlugin.PREDICTOR: 2}
    return saved(images[0], "TIFF", save_all=len(images) > 1, append_images=images[1:], **options)


def saved(image: Image.Image, pillow_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, pillow_format, **options)
    return buffer.getvalue()


def _positions(image: Image.Image, max_pixels: int, *, only_first: bool) -> list[int]:
    """Which frames to decode. Counts their pixels on the way, from headers.

    Sixteen-bit samples count twice, for they take twice the memory.
    """
    if only_first:
        _check_pixels(_pixels(image), max_pixels)
        return [0]
    if image.format != "TIFF":
        count: int = getattr(image, "n_frames", 1)
        _check_frames(count)
        _check_pixels(_pixels(image) * count, max_pixels)
        return list(range(count))
    positions: list[int] = []
    total = 0
    for position, page in _pages(image):
        _check_frames(position + 1)
        if position and int(page.tag_v2.get(SUBFILE_TYPE, 0)) & SUBORDINATE:
            continue
        positions.append(position)
        total += _pixels(page)
        _check_pixels(total, max_pixels)
    return positions


def _pages(image: Image.Image) -> Iterator[tuple[int, Any]]:
    position = 0
    while True:
        try:
            image.seek(position)
        except EOFError:
            return
        yield position, image
        position += 1


def _pixels(image: Image.Image) -> int:
    wide = any("16" in str(tile.args) for tile in getattr(image, "tile", ()))
    return image.width * image.height * (2 if wide else 1)


def _check_pixels(pixels: int, max_pixels: int) -> None:
    if pixels > max_pixels:
        raise ImageRejected(Reason.TOO_MANY_PIXELS, f"{pixels:,} pixels in all its frames; the limit is {max_pixels:,}")


def _check_frames(count: int) -> None:
    if count > MAX_FRAMES:
        raise ImageRejected(Reason.TOO_MANY_FRAMES, f"{count:,} frames; the limit is {MAX_FRAMES:,}")


def _plays(image: Image.Image) -> int:
    """How often the animation of an open file runs, 0 for ever."""
    loop: int | None = image.info.get("loop")
    if image.format != "GIF":
        return loop or 0
    if loop is None:
        return 1
    return loop + 1 if loop else 0


def _in_few_colours(images: Sequence[Image.Image], quality: int) -> list[Image.Image]:
    """RGB images in one palette, of as few colours as ``quality`` allows.

    Undithered if possible: dithering moves from frame to frame, and is what LZW compresses worst.
    """
    for colours in (palette.colours_at(quality), GIF_MAX_COLOURS):
        table = palette.shared_palette(images, min(colours, GIF_MAX_COLOURS))
        indexed = [image.quantize(palette=table, dither=Image.Dither.NONE) for image in images]
        if all(palette.faithful(*pair, quality) for pair in zip(images, indexed, strict=True)):
            return indexed
    return [image.quantize(palette=table, dither=Image.Dither.FLOYDSTEINBERG) for image in images]
