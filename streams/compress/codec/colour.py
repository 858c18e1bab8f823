"""Converts decoded images for the screen: upright, 8 bits per sample, sRGB, without hidden pixels.

Every function takes a loaded image and returns one of mode 1, L, LA, RGB or RGBA, without metadata.
"""

import io
from functools import lru_cache
from itertools import product

from PIL import Image, ImageChops, ImageCms

from streams.compress.codec.colour_spaces import Hdr, hdr_table
from streams.compress.codec.outcome import ImageRejected, Reason

Transpose = Image.Transpose

ORIENTATION_TAG = 0x0112
# Exif 2.32, table 6, tag Orientation: the transposition that undoes each value.
UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}

# Everything that Pillow and LittleCMS raised on damaged profiles and Exif blocks in tests.
METADATA_ERRORS = (ImageCms.PyCMSError, ArithmeticError, EOFError, LookupError, OSError, RuntimeError, SyntaxError,
                   TypeError, ValueError)  # fmt: skip
# A transform that moves no colour further than this (of 255) is not worth its time.
IMPERCEPTIBLE = 1


def as_displayed(image: Image.Image) -> Image.Image:
    """The pixels as a colour-managed viewer shows them."""
    image = visible(in_srgb(upright(image)))
    image.info = {}
    return image


def orientation(image: Image.Image) -> int:
    """The Exif orientation, 1 when there is none or the block is damaged.

    Only Exif counts: browsers ignore the orientation of XMP, which ``Image.getexif`` would fall back to.
    """
    block = image.info.get("exif")
    if not block:
        return 1
    exif = Image.Exif()
    try:
        exif.load(block)
        value = exif.get(ORIENTATION_TAG, 1)
    except METADATA_ERRORS:
        return 1
    return value if isinstance(value, int) else 1


def upright(image: Image.Image) -> Image.Image:
    """Rotate and mirror the image by its Exif orientation (Pillow does so itself for TIFF)."""
    method = UPRIGHT.get(orientation(image))
    if method is None:
        return image
    turned = image.transpose(method)
    turned.info = {**image.info, "exif": b""}
    return turned


def in_srgb(image: Image.Image) -> Image.Image:
    """Converted to sRGB through the profile in ``info`` or the table for HDR; without either, taken as sRGB."""
    profile: bytes | None = image.info.get("icc_profile")
    if image.mode == "CMYK":
        transform = _to_srgb(profile, "CMYK") if profile else None
        # Without a profile: the multiplicative formula, as in browsers.
        return ImageCms.applyTransform(image, transform) or image if transform else image.convert("RGB")
    if image.mode == "LAB":
        return ImageCms.applyTransform(image, _lab_to_srgb()) or image
    hdr: Hdr | None = image.info.get("hdr")
    image = _eight_bit(image)
    if hdr:
        return _with_colours(image).filter(hdr_table(hdr))
    if not profile or image.mode == "1":
        return image
    space = _colour_space(profile)
    if space == "GRAY":
        grey = _without_colour(image)
        return _grey_to_srgb(grey, profile) if grey else image
    if space != "RGB":
        return image
    coloured = _with_colours(image)
    transform = _to_srgb(profile, coloured.mode)
    converted = ImageCms.applyTransform(coloured, transform) if transform else None
    if converted is None or coloured is image:
        return converted or image
    # Grey with a profile for colours; what it makes of grey is grey but for rounding.
    grey = converted.getchannel("G")
    return Image.merge("LA", (grey, image.getchannel("A"))) if image.mode == "LA" else grey


def _with_colours(image: Image.Image) -> Image.Image:
    """As RGB or RGBA."""
    return image if image.mode in ("RGB", "RGBA") else image.convert("RGBA" if image.mode == "LA" else "RGB")


def visible(image: Image.Image) -> Image.Image:
    """Without the alpha channel where it hides nothing, and without the colours that it does hide."""
    if image.mode not in ("LA", "RGBA"):
        return image
    alpha = image.getchannel("A")
    lowest, _ = alpha.getextrema()
    if lowest == 255:
        return image.convert(image.mode[:-1])
    if lowest == 0:
        shown = alpha.point([0] + [255] * 255)
        return Image.composite(image, Image.new(image.mode, image.size, 0), shown)
    return image


def over_white(image: Image.Image) -> Image.Image:
    """Without alpha, for a format that has none: laid over white, as on most product pages."""
    if image.mode not in ("LA", "RGBA"):
        return image
    page = Image.new(image.mode[:-1], image.size, 255 if image.mode == "LA" else (255, 255, 255))
    page.paste(image.convert(page.mode), mask=image.getchannel("A"))
    return page


def is_grey(image: Image.Image) -> bool:
    """Whether an RGB or RGBA image has no colour in it."""
    red, green, blue = image.split()[:3]
    return all(ImageChops.difference(red, other).getbbox() is None for other in (green, blue))


def _eight_bit(image: Image.Image) -> Image.Image:
    """Any of Pillow's other modes as 1, L, LA, RGB or RGBA; colour keys and palettes become alpha."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return _sixteen_to_eight(image)
    if image.mode in ("I", "F"):
        raise ImageRejected(Reason.UNSUPPORTED_FORMAT, f"pixels of mode {image.mode} have no defined white")
    if image.mode in ("RGBA", "LA"):
        return image
    if image.has_transparency_data or image.mode == "RGBa":
        return image.convert("LA" if image.mode in ("L", "La", "1") else "RGBA")
    return image if image.mode in ("1", "L", "RGB") else image.convert("RGB")


def _sixteen_to_eight(image: Image.Image) -> Image.Image:
    """0…65535 as 0…255. ``convert("L")`` would clip all above 255 to white."""
    key = image.info.get("transparency")
    wide = image.convert("I")
    grey = wide.point(lambda value: value * (1 / 257) + 0.5).convert("L")
    if not isinstance(key, int):
        return grey
    # 255 where the sample is not the key: |sample - key| clips at 255 once it is an L image.
    distance = ImageChops.add(
        wide.point(lambda value: value * 1 - key).convert("L"),
        wide.point(lambda value: value * -1 + key).convert("L"),
    )
    return Image.merge("LA", (grey, distance.point([0] + [255] * 255)))


def _without_colour(image: Image.Image) -> Image.Image | None:
    """The image as L or LA, None if it has colours: a grey profile says nothing about those."""
    if image.mode in ("L", "LA"):
        return image
    # 16-bit grey with alpha comes out of Pillow as RGBA.
    return image.convert("LA" if image.mode == "RGBA" else "L") if is_grey(image) else None


def _grey_to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    transform = _to_srgb(profile, "L")
    if transform is None:
        return image
    converted = ImageCms.applyTransform(image.getchannel(0), transform)
    if converted is None:
        return image
    grey = converted.getchannel("G")
    return grey if image.mode == "L" else Image.merge("LA", (grey, image.getchannel("A")))


def _colour_space(profile: bytes) -> str:
    """Bytes 16 to 19 of an ICC profile (ICC.1:2022, 7.2.1)."""
    return profile[16:20].decode("latin-1").strip()


@lru_cache(maxsize=16)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform for pixels of ``mode``; None if the profile is broken, doesn't fit, or has the effect of sRGB.

    Relative colorimetric with black point compensation is what photo editors do by default.
    """
    target = "RGB" if mode in ("L", "CMYK") else mode
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            target,
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if mode != "CMYK" and _moves_nothing(transform, mode):
            return None
    except METADATA_ERRORS:
        return None
    return transform


def _moves_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Tested on a grid of colours: the effect of a profile is more reliable than its name."""
    if mode == "L":
        grid = Image.frombytes("L", (16, 16), bytes(range(256)))
    else:
        steps = range(0, 256, 15)
        grid = Image.frombytes(
            "RGB", (len(steps), len(steps) ** 2), bytes(v for c in product(steps, repeat=3) for v in c)
        )
        grid = grid.convert(mode)
    moved = ImageCms.applyTransform(grid, transform)
    if moved is None:
        return False
    difference = ImageChops.difference(grid.convert("RGB"), moved.convert("RGB"))
    return all(sum(band.histogram()[IMPERCEPTIBLE + 1 :]) == 0 for band in difference.split())


@lru_cache(maxsize=1)
def _lab_to_srgb() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
