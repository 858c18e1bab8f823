"""Simplifies PNG files before Pillow reads them, and corrects the colour key that it reads wrongly.

Browsers ignore an ancillary chunk that is damaged, too large or useless; Pillow rejects the image.
"""

import io
import zlib

from PIL import Image, ImageChops, ImageFile

from streams.compress.codec import colour_spaces
from streams.compress.codec.containers import PNG_SIGNATURE

# Ancillary chunks that affect the pixels; the names of critical chunks begin with a capital letter.
KEPT = frozenset((b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT"))
COLOUR = frozenset((b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM"))
# Browsers read profiles of several megabytes; larger ones are ignored.
MAX_PROFILE_BYTES = 16 * 1024 * 1024


def simplified(data: bytes) -> tuple[bytes, colour_spaces.ColourSpace | None]:
    """The file without chunks that don't matter, and its colour space; None is sRGB."""
    kept = [PNG_SIGNATURE]
    colour: dict[bytes, bytes] = {}
    at = len(PNG_SIGNATURE)
    view = memoryview(data)
    while at + 8 <= len(data):
        size, name = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        end = at + 12 + size
        critical = name[:1].isupper() or end > len(data)
        if critical or (
            name in KEPT | COLOUR and zlib.crc32(view[at + 4 : end - 4]) == int.from_bytes(view[end - 4 : end])
        ):
            if name in COLOUR:
                colour.setdefault(name, data[at + 8 : end - 4])
            else:
                kept.append(data[at:end])
        at = end
    profile = _profile(colour[b"iCCP"]) if b"iCCP" in colour else None
    return b"".join(kept), colour_spaces.of_png(colour, profile)


def _profile(chunk: bytes) -> bytes | None:
    """The ICC profile of an iCCP chunk: a name, a zero, the method (0), the compressed profile."""
    _, _, rest = chunk.partition(b"\0")
    inflate = zlib.decompressobj()
    try:
        profile = inflate.decompress(rest[1:], MAX_PROFILE_BYTES)
    except zlib.error:
        return None
    return profile if inflate.eof else None


def with_exact_key(image: Image.Image, data: bytes) -> Image.Image:
    """A loaded 16-bit RGB image with a colour key, with alpha: clear are the pixels that have all 48 bits of the key.

    Pillow returns the high byte of each sample; read as if the low byte came first, the other one.
    """
    key = image.info["transparency"]
    with Image.open(io.BytesIO(data), formats=["PNG"]) as low:
        low.tile = [ImageFile._Tile(tile[0], tile[1], tile[2], "RGB;16L") for tile in low.tile]
        low.load()
    clear = Image.new("L", image.size, 255)
    for bytes_of_samples, shift in ((image, 8), (low, 0)):
        for band, value in zip(bytes_of_samples.split(), key, strict=True):
            wanted = value >> shift & 255
            clear = ImageChops.darker(clear, band.point([255 * (level == wanted) for level in range(256)]))
    keyed = image.convert("RGB")
    keyed.putalpha(ImageChops.invert(clear))
    keyed.info = {name: value for name, value in image.info.items() if name != "transparency"}
    return keyed
