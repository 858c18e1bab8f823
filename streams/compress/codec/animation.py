"""Animations and multi-page documents: reads and writes all of their frames."""

import io
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pi_heif
from PIL import Image, ImageChops, TiffImagePlugin, UnidentifiedImageError

from streams.compress.codec import avif, palette, png
from streams.compress.codec.colour import as_displayed, in_srgb, upright, visible
from streams.compress.codec.colour_spaces import SRGB_CURVE, ColourSpace, Hdr, by_numbers
from streams.compress.codec.composition import composed
from streams.compress.codec.containers import Animation, Part, parse_animation, with_webp_alpha
from streams.compress.codec.encoders import saved, webp_options
from streams.compress.codec.gif import animated_gif
from streams.compress.codec.outcome import ImageRejected, Reason
from streams.compress.codec.size import fitted
from streams.compress.codec.truncated import salvaged

# More frames are a film; and each costs time besides that of its pixels.
MAX_FRAMES = 2_000
MAX_PLAYS = 65_535  # the loop counts of GIF and WebP have 16 bits

GIF_MAX_COLOURS = 255  # one index is left for "as in the frame before"
HALF_OPAQUE = 128
APNG_KEEP, APNG_REPLACE = 0, 0  # dispose_op NONE and blend_op SOURCE (PNG 3rd edition, 11.3.6)
# TIFF 6.0, NewSubfileType: bit 0 is a smaller version of another page, bit 2 a mask for one.
SUBFILE_TYPE, SUBORDINATE = 254, 0b101
# Compressions that Pillow names and its libtiff lacks.
COMPRESSION, UNREADABLE_TIFF = 259, {50_001: "WebP", 32_809: "ThunderScan"}


pi_heif.register_heif_opener(thumbnails=False, decode_threads=1)  # there is a decoder process for each core


@dataclass(frozen=True)
class Frames:
    """The decoded content of a file: one image, the pages of a TIFF, or an animation.

    ``durations`` are in milliseconds, one for each image. ``plays`` is how often the animation runs, 0 for
    ever. ``poster`` is what an APNG shows where animations can't be shown, if that is none of its frames.
    ``pages`` is how many pages the file has, of which ``images`` may hold only the first. ``truncated``: the file
    ends too early, and the missing part is clear.
    """

    images: Sequence[Image.Image]
    durations: Sequence[float] = (0,)
    plays: int = 0
    poster: Image.Image | None = None
    pages: int = 1
    truncated: bool = False

    @property
    def first(self) -> Image.Image:
        return self.images[0]

    @property
    def animated(self) -> bool:
        return len(self.images) > 1

    def fitting(self, max_width: int | None, max_height: int | None) -> "Frames":
        """Each image made smaller until it fits; the very same if all of them do."""
        box = (max_width, max_height)
        images = [fitted(image, *box) for image in self.images]
        poster = fitted(self.poster, *box) if self.poster else None
        if poster is self.poster and all(map(operator.is_, images, self.images)):
            return self
        return replace(self, images=images, poster=poster)

    def in_one_mode(self) -> "Frames":
        """Convert all images to the smallest mode that fits each of them: an animation has one mode."""
        modes = {image.mode for image in (*self.images, *([self.poster] if self.poster else []))}
        alpha = not modes.isdisjoint(("LA", "RGBA"))
        mode = "RGBA" if alpha else "RGB" if "RGB" in modes else "L"
        images = [image if image.mode == mode else image.convert(mode) for image in self.images]
        return replace(self, images=images, poster=self.poster.convert(mode) if self.poster else None)


def read_frames(source: str, data: bytes, max_pixels: int, *, only_first: bool) -> Frames:
    """Decode a file with Pillow's decoder ``source``; its pixels are counted from the headers first.

    Raises ImageRejected for too many pixels or frames, and whatever Pillow raises.
    """
    space: ColourSpace | None = None
    if source == "PNG":
        data, space = png.simplified(data)
    animation = parse_animation(source, data)
    if animation is not None:
        return _read_animation(source, animation, space, max_pixels, only_first=only_first)
    with _opened(source, data) as image:
        if source == "TIFF":
            return _read_pages(image, max_pixels, only_first=only_first)
        if source == "AVIF" and not image.info.get("icc_profile"):
            space = avif.colour_space(data)
        if source == "HEIF" and not image.info.get("icc_profile") and (nclx := image.info.get("nclx_profile")):
            codes = int(nclx["color_primaries"]), int(nclx["transfer_characteristics"])
            space = by_numbers(*codes, video=SRGB_CURVE)
        # Of the other formats only AVIF has frames: the second image of an MPO is a preview or a gain map.
        count: int = getattr(image, "n_frames", 1) if source == "AVIF" and not only_first else 1
        _check_frames(count)
        _check_pixels(_pixels(image) * count, max_pixels)
        images: list[Image.Image] = []
        durations: list[float] = []
        for position in range(count):
            image.seek(position)
            try:
                frame = _loaded(image, data, space)
            except OSError:
                if frames := _salvaged(source, data, space):
                    return frames
                raise
            durations.append(float(image.info.get("duration", 0)))
            # A copy, because seeking changes the image, and needs the metadata that as_displayed drops.
            images.append(as_displayed(frame.copy() if count > 1 else frame))
        return Frames(images, durations, avif.plays(data) if count > 1 else 0)


def _opened(source: str, data: bytes) -> Image.Image:
    """Raises the error of Pillow's plugin; that of ``Image.open`` names only the address of an object."""
    try:
        return Image.open(io.BytesIO(data), formats=[source])
    except UnidentifiedImageError:
        plugin, _ = Image.OPEN[source]
        try:
            return plugin(io.BytesIO(data), "")
        except KeyError as error:  # a code that no table has
            raise ImageRejected(Reason.UNSUPPORTED_FORMAT, f"a {source} of a kind that is not supported") from error
        except SyntaxError as error:
            if "unknown pixel mode" not in str(error):
                raise
            detail = f"a {source} whose pixels are of a kind that is not supported"
            raise ImageRejected(Reason.UNSUPPORTED_FORMAT, detail) from error


def _loaded(image: Image.Image, data: bytes, space: ColourSpace | None) -> Image.Image:
    """An opened image decoded, with its colour space in ``info``."""
    wide = image.mode == "RGB" and _is_wide(image)
    image.load()
    if wide and isinstance(image.info.get("transparency"), tuple):
        image = png.with_exact_key(image, data)
    if space is not None:
        image.info["hdr" if isinstance(space, Hdr) else "icc_profile"] = space
    return image


def _salvaged(source: str, data: bytes, space: ColourSpace | None) -> Frames | None:
    """An image that ends too early as browsers show it; None if too much is missing."""
    if (found := salvaged(source, data)) is None:
        return None
    image, mask = found
    mask.info = {"exif": image.info.get("exif", b"")}
    mask = upright(mask)
    shown = as_displayed(_loaded(image, data, space))
    if mask.getextrema() == (255, 255):
        return Frames([shown], truncated=True)
    shown = shown.convert("LA" if shown.mode in ("1", "L", "LA") else "RGBA")
    shown.putalpha(ImageChops.darker(shown.getchannel("A"), mask))
    return Frames([visible(shown)], truncated=True)


def _read_animation(
    source: str, animation: Animation, space: ColourSpace | None, max_pixels: int, *, only_first: bool
) -> Frames:
    if only_first:
        animation = replace(animation, parts=animation.parts[:1], poster=None)
    _check_frames(len(animation.parts))
    _check_pixels(animation.pixels, max_pixels)
    size = (animation.width, animation.height)
    stills = ((part, _still(source, part, space, max_pixels)) for part in animation.parts)
    images = [visible(image) for image in composed(size, stills)]
    poster = None
    if animation.poster and len(images) > 1:
        poster = visible(_still(source, animation.poster, space, max_pixels))
    return Frames(images, [part.duration for part in animation.parts], animation.plays, poster)


def _still(source: str, part: Part, space: ColourSpace | None, max_pixels: int) -> Image.Image:
    """A part of an animation as RGBA, in sRGB."""
    if not part.width or not part.height:
        return Image.new("RGBA", (part.width, part.height))
    with _opened(source, part.data) as image:
        _check_pixels(_pixels(image), max_pixels)
        return in_srgb(_loaded(image, part.data, space)).convert("RGBA")


def _read_pages(image: Image.Image, max_pixels: int, *, only_first: bool) -> Frames:
    """The pages of a TIFF, without smaller versions of others and masks."""
    if image.tag_v2.get(COMPRESSION) in UNREADABLE_TIFF:  # type: ignore[attr-defined]  # of Pillow's plugin
        name = UNREADABLE_TIFF[image.tag_v2[COMPRESSION]]  # type: ignore[attr-defined]  # of Pillow's plugin
        raise ImageRejected(Reason.UNSUPPORTED_FORMAT, f"a TIFF whose pixels are compressed as {name}")
    positions: list[int] = []
    total = 0
    for position, page in _pages(image):
        _check_frames(position + 1)
        if position and int(page.tag_v2.get(SUBFILE_TYPE, 0)) & SUBORDINATE:
            continue
        positions.append(position)
        if len(positions) == 1 or not only_first:
            total += _pixels(page)
            _check_pixels(total, max_pixels)
    images = []
    for position in positions[:1] if only_first else positions:
        image.seek(position)
        image.load()
        images.append(as_displayed(image.copy()))
    return Frames(images, [0] * len(images), pages=len(positions))


def write_gif(frames: Frames, quality: int) -> bytes:
    """One palette for all frames; only what changes from frame to frame is stored."""
    frames = frames.in_one_mode()
    clear = frames.first.mode == "RGBA"
    colours = [image.convert("RGB") for image in frames.images]
    indexed = _in_few_colours(colours, quality)
    table = indexed[0].getpalette() or []
    transparent = len(table) // 3
    if clear:
        for image, frame in zip(indexed, frames.images, strict=True):
            hidden = frame.getchannel("A").point([255] * HALF_OPAQUE + [0] * (256 - HALF_OPAQUE))
            image.putpalette([*table, 0, 0, 0])
            image.paste(transparent, mask=hidden)
    if frames.animated:
        return animated_gif(indexed, [*table, 0, 0, 0], transparent, frames.durations, frames.plays)
    return saved(indexed[0], "GIF", optimize=True, **({"transparency": transparent} if clear else {}))


def write_webp_animation(frames: Frames, quality: int) -> bytes:
    frames = frames.in_one_mode()
    data = saved(
        frames.first,
        "WEBP",
        save_all=True,
        append_images=frames.images[1:],
        duration=[round(duration) for duration in frames.durations],
        loop=min(frames.plays, MAX_PLAYS),
        background=(0, 0, 0, 0),
        **webp_options(quality),
    )
    return with_webp_alpha(data) if frames.first.mode == "RGBA" else data


def write_apng(frames: Frames, quality: int) -> bytes:
    """With one palette if the loss is invisible; with partial transparency in full colour."""
    frames = frames.in_one_mode()
    images = frames.images
    if frames.first.mode == "RGB" and quality < 100 and frames.poster is None:
        table = palette.shared_palette(images, palette.MAX_COLOURS)
        indexed = [palette.with_palette(image, table, quality) for image in images]
        images = [image for image in indexed if image is not None]
        if len(images) < len(indexed):
            images = frames.images
    return saved(
        frames.poster or images[0],
        "PNG",
        save_all=True,
        append_images=images if frames.poster else images[1:],
        default_image=frames.poster is not None,
        duration=list(frames.durations),
        loop=frames.plays,
        disposal=APNG_KEEP,
        blend=APNG_REPLACE,
        optimize=True,
    )


def write_avif_sequence(frames: Frames, **options: Any) -> bytes:
    frames = frames.in_one_mode()
    durations = [round(duration) for duration in frames.durations]
    data = saved(frames.first, "AVIF", save_all=True, append_images=frames.images[1:], duration=durations, **options)
    return avif.with_plays(data, frames.plays)


def write_tiff(frames: Frames) -> bytes:
    """Lossless: a TIFF is a master copy or a scan, and few readers support JPEG in TIFF.

    All pages are kept.
    """
    bilevel = all(image.mode == "1" for image in frames.images)
    images = [image if bilevel or image.mode != "1" else image.convert("L") for image in frames.images]
    options: dict[str, Any] = {"compression": "group4"} if bilevel else {"compression": "tiff_adobe_deflate"}
    if not bilevel:
        # TIFF 6.0, section 14: store each sample's difference to its left neighbour.
        options["tiffinfo"] = {TiffImagePlugin.PREDICTOR: 2}
    return saved(images[0], "TIFF", save_all=len(images) > 1, append_images=images[1:], **options)


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
    return image.width * image.height * (2 if _is_wide(image) else 1)


def _is_wide(image: Image.Image) -> bool:
    """Whether an image that is opened and not yet loaded has 16-bit samples."""
    return any("16" in str(tile.args) for tile in getattr(image, "tile", ()))


def _check_pixels(pixels: int, max_pixels: int) -> None:
    if pixels > max_pixels:
        raise ImageRejected(Reason.TOO_MANY_PIXELS, f"{pixels:,} pixels in all its frames; the limit is {max_pixels:,}")


def _check_frames(count: int) -> None:
    if count > MAX_FRAMES:
        raise ImageRejected(Reason.TOO_MANY_FRAMES, f"{count:,} frames; the limit is {MAX_FRAMES:,}")


def _in_few_colours(images: Sequence[Image.Image], quality: int) -> list[Image.Image]:
    """RGB images in one palette, of as few colours as ``quality`` allows; the same pixels at quality 100, if they fit.

    Undithered if possible: dithering moves from frame to frame, and is what LZW compresses worst.
    """
    if quality >= 100 and (same := palette.shared_exact(images, GIF_MAX_COLOURS)) is not None:
        return same
    for colours in (palette.colours_at(quality), GIF_MAX_COLOURS):
        table = palette.shared_palette(images, min(colours, GIF_MAX_COLOURS))
        indexed = [image.quantize(palette=table, dither=Image.Dither.NONE) for image in images]
        if all(palette.faithful(*pair, quality) for pair in zip(images, indexed, strict=True)):
            return indexed
    return [image.quantize(palette=table, dither=Image.Dither.FLOYDSTEINBERG) for image in images]
