"""AVIF features that Pillow lacks: colour spaces by number (nclx), and the repetition count of a sequence.

ISO/IEC 14496-12, 8.6.6: an edit list with flag 1 repeats its one edit until the track's duration (``tkhd``) is over,
which is all ones for ever. Without an edit list browsers repeat for ever.
"""

import struct
from collections.abc import Iterator

from streams.compress.codec.colour_spaces import SRGB_CURVE, ColourSpace, by_numbers

CONTAINERS = (b"moov", b"trak", b"edts")
INDEFINITE = {0: 2**32 - 1, 1: 2**64 - 1}  # by version of the box
REPEATED = 1


def colour_space(data: bytes) -> ColourSpace | None:
    """Of the first ``colr`` box of type nclx (ISO/IEC 14496-12, 12.1.5); None is sRGB."""
    at = data.find(b"colrnclx")
    if at < 0 or at + 12 > len(data):
        return None
    return by_numbers(*struct.unpack_from(">HH", data, at + 8), video=SRGB_CURVE)


def plays(data: bytes) -> int:
    """How often a sequence plays, 0 for ever."""
    try:
        found = dict(_boxes(data, 0, len(data)))
        header, edits = found[b"tkhd"], found[b"elst"]
        if not data[edits + 3] & REPEATED:
            return 1
        total = _duration(data, header)
        segment: int = struct.unpack_from(">Q" if data[edits] else ">I", data, edits + 8)[0]
    except (KeyError, IndexError, struct.error):
        return 0
    return 0 if total == INDEFINITE[bool(data[header])] or not segment else max(1, -(-total // segment))


def with_plays(data: bytes, count: int) -> bytes:
    """The sequence, as libavif writes it with repetition for ever, playing ``count`` times; 0 is for ever."""
    if not count:
        return data
    changed = bytearray(data)
    found = list(_boxes(data, 0, len(data)))
    segment: int = struct.unpack_from(">Q", data, dict(found)[b"elst"] + 8)[0]
    for name, at in found:
        if name in (b"mvhd", b"tkhd"):
            struct.pack_into(">Q", changed, at + _duration_place(data, at, name), segment * count)
    return bytes(changed)


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int]]:
    """Name of each box and where its body is, those within CONTAINERS too."""
    while at + 8 <= end:
        size, name = struct.unpack_from(">I4s", data, at)
        body = at + 8
        if size == 1:
            size, body = struct.unpack_from(">Q", data, body)[0], body + 8
        stop = min(end, at + size) if size else end
        if stop < body:
            return
        yield name, body
        if name in CONTAINERS:
            yield from _boxes(data, body, stop)
        at = stop


def _duration_place(data: bytes, box: int, name: bytes) -> int:
    """Where the duration is within the body of a tkhd (8.3.2) or mvhd (8.2.2): behind two times, and 8 or 4 bytes."""
    return 4 + (16 if data[box] else 8) + (8 if name == b"tkhd" else 4)


def _duration(data: bytes, box: int) -> int:
    duration: int = struct.unpack_from(">Q" if data[box] else ">I", data, box + _duration_place(data, box, b"tkhd"))[0]
    return duration
