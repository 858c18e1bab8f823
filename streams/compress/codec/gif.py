"""Writes an animated GIF (GIF89a): of each frame only what differs from the one before.

Pillow's own writer loses a frame in which nothing is left, and merges equal ones.
"""

import struct
from collections.abc import Sequence

from PIL import Image, ImageChops

from streams.compress.codec.encoders import saved

KEEP, CLEAR = 1, 2  # disposal methods (GIF89a, section 23)
MAX_DELAY = 65_535  # centiseconds


def animated_gif(
    frames: Sequence[Image.Image], palette: Sequence[int], transparent: int, durations: Sequence[float], plays: int
) -> bytes:
    """``frames`` are of mode P in one ``palette``; ``transparent`` is the index that stands for nothing. ``durations``
    are in milliseconds; ``plays`` is how often it runs, 0 for ever."""
    bits = max(1, (max(len(palette) // 3, transparent + 1) - 1).bit_length())
    width, height = frames[0].size
    file = [b"GIF89a", struct.pack("<HHBBB", width, height, 0x80 | bits - 1, transparent, 0)]
    file.append(bytes(palette).ljust(3 << bits, b"\0"))
    if plays != 1:
        # The count in a GIF is of repetitions, as gif2webp and the browsers read it.
        file.append(b"\x21\xff\x0bNETSCAPE2.0\x03\x01" + struct.pack("<H", max(0, min(plays, 65_536) - 1)) + b"\0")
    canvas = Image.new("L", frames[0].size, transparent)
    indices = [Image.frombytes("L", frame.size, frame.tobytes()) for frame in frames]
    for number, (frame, duration) in enumerate(zip(indices, durations, strict=True)):
        following = indices[number + 1] if number + 1 < len(indices) else None
        cleared = _mask(frame, following, transparent).getbbox() if following else None
        changed = ImageChops.difference(canvas, frame)
        box = _union(changed.getbbox(), cleared) or (0, 0, 1, 1)
        unchanged = changed.crop(box).point([255] + [0] * 255)
        patch = frame.crop(box)
        patch.paste(transparent, mask=unchanged)
        disposal = CLEAR if cleared else KEEP
        delay = min(MAX_DELAY, round(duration / 10))
        file.append(struct.pack("<BBBBHBB", 0x21, 0xF9, 4, disposal << 2 | 1, delay, transparent, 0))
        file.append(struct.pack("<BHHHHB", 0x2C, *box[:2], *patch.size, 0) + _lzw(patch))
        canvas = frame
        if cleared:
            canvas = frame.copy()
            canvas.paste(transparent, box)
    return b"".join([*file, b"\x3b"])


def _mask(frame: Image.Image, following: Image.Image, transparent: int) -> Image.Image:
    """255 where ``frame`` is opaque and the ``following`` one is transparent."""
    opaque = frame.point([255 * (index != transparent) for index in range(256)])
    cleared = following.point([255 * (index == transparent) for index in range(256)])
    return ImageChops.darker(opaque, cleared)


def _union(
    one: tuple[int, int, int, int] | None, other: tuple[int, int, int, int] | None
) -> tuple[int, int, int, int] | None:
    if one is None or other is None:
        return one or other
    return (min(one[0], other[0]), min(one[1], other[1]), max(one[2], other[2]), max(one[3], other[3]))


def _lzw(patch: Image.Image) -> bytes:
    """The compressed indices, as Pillow writes them into a still GIF: behind header, colour table and descriptor."""
    still = saved(patch, "GIF", interlace=0, optimize=False)
    at = 13 + (3 << (still[10] & 7) + 1)
    assert still[at] == 0x2C, "a still GIF has no extensions"
    return still[at + 10 : -1]
