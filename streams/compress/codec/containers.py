"""Splits GIF, APNG and animated WebP into frames, each a stand-alone file that Pillow decodes as a still image.

Pillow composes frames itself, in ways that differ from the formats' specifications; so it is given one frame at a time,
and ``composition`` puts them on the canvas.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from streams.compress.codec.outcome import ImageRejected, Reason

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Chunks that decide how samples are read, so that each frame needs them; colour spaces are ``png``'s.
PNG_SHARED_CHUNKS = frozenset((b"PLTE", b"tRNS"))
GIF_LOOP_EXTENSIONS = (b"NETSCAPE2.0", b"ANIMEXTS1.0")
WEBP_ALPHA_FLAG, WEBP_ICC_FLAG, WEBP_ANIMATION_FLAG = 0x10, 0x20, 0x02


class Dispose(Enum):
    """Disposal of a frame's area at the end of its duration."""

    KEEP = "keep"
    CLEAR = "clear"  # to transparent
    PREVIOUS = "previous"  # to what was there before the frame


@dataclass(frozen=True)
class Part:
    """One stored frame: a stand-alone file, its position on the canvas in pixels, its duration in milliseconds."""

    data: bytes
    left: int
    top: int
    width: int
    height: int
    duration: float = 0.0
    dispose: Dispose = Dispose.KEEP
    blend: bool = True


@dataclass(frozen=True)
class Animation:
    """An animation as it is stored. ``plays`` is how often it runs, 0 for ever. ``poster`` is the image that an APNG
    shows where animations can't be shown, if that is none of its frames."""

    width: int
    height: int
    plays: int
    parts: tuple[Part, ...]
    poster: Part | None = None

    @property
    def pixels(self) -> int:
        """Of everything that will be decoded and composed."""
        canvas = self.width * self.height
        stills = (*self.parts, self.poster) if self.poster else self.parts
        return sum(max(canvas, part.width * part.height) for part in stills)


def parse_animation(source: str, data: bytes) -> Animation | None:
    """The animation in a file that Pillow calls ``source``; None for a still image. A GIF is never a still image here:
    its only frame may be smaller than the canvas.

    Raises ImageRejected for a file without a whole frame.
    """
    try:
        match source:
            case "GIF":
                return _gif(data)
            case "PNG":
                return _apng(data)
            case "WEBP":
                return _webp(data)
    except (IndexError, struct.error) as error:
        raise ImageRejected(Reason.TRUNCATED_IMAGE, f"the {source} file ends within a frame") from error
    return None


# --- GIF89a


def _gif(data: bytes) -> Animation:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13
    table, at = _gif_colour_table(data, at, flags)
    control, plays = b"", 1
    parts: list[Part] = []
    while at < len(data):
        introducer = data[at]
        if introducer == 0x21 and at + 1 < len(data):  # extension
            label, body, at = data[at + 1], *_gif_blocks(data, at + 2)
            if label == 0xF9 and body and len(body[0]) >= 4:
                control = body[0]
            elif label == 0xFF and len(body) > 1 and body[0] in GIF_LOOP_EXTENSIONS and body[1][:1] == b"\x01":
                repeats = int.from_bytes(body[1][1:3], "little")
                plays = repeats + 1 if repeats else 0
        elif introducer == 0x2C:
            left, top, frame_width, frame_height, frame_flags = struct.unpack_from("<HHHHB", data, at + 1)
            if not parts:
                # As in browsers: the first frame may be larger than the declared canvas.
                width, height = max(width, left + frame_width), max(height, top + frame_height)
            frame_table, start = _gif_colour_table(data, at + 10, frame_flags)
            frame_table = frame_table or table
            _, end = _gif_blocks(data, start + 1)
            if end > len(data) and parts:
                break  # the file ends within a frame: browsers play those before it
            size = struct.pack("<HH", frame_width, frame_height)
            bits = (len(frame_table) // 3).bit_length() - 2
            still = [b"GIF89a", size, bytes((0x80 | bits if frame_table else 0, 0, 0)), frame_table]
            if control:
                still.append(b"\x21\xf9\x04" + bytes((control[0] & 1,)) + b"\0\0" + control[3:4] + b"\0")
            still.append(b"\x2c\0\0\0\0" + size + bytes((frame_flags & 0x40,)) + data[start:end] + b"\x3b")
            disposal = control[0] >> 2 & 7 if control else 0
            duration = int.from_bytes(control[1:3], "little") * 10.0
            dispose = {2: Dispose.CLEAR, 3: Dispose.PREVIOUS, 4: Dispose.PREVIOUS}.get(disposal, Dispose.KEEP)
            parts.append(Part(b"".join(still), left, top, frame_width, frame_height, duration, dispose))
            control, at = b"", end
        else:
            break  # the trailer, or rubbish behind the last frame
    if not parts:
        raise ImageRejected(Reason.BROKEN_IMAGE, "a GIF without a frame")
    return Animation(width, height, plays, tuple(parts))


def _gif_colour_table(data: bytes, at: int, flags: int) -> tuple[bytes, int]:
    end = at + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    return data[at:end], end


def _gif_blocks(data: bytes, at: int) -> tuple[list[bytes], int]:
    """The sub-blocks from ``at`` on, and where they end: behind the data if that ends before they do."""
    blocks = []
    while at < len(data) and (size := data[at]):
        blocks.append(data[at + 1 : at + 1 + size])
        at += 1 + size
    return blocks, at + 1


# --- APNG (PNG 3rd edition)


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and body of each chunk, as far as the file goes."""
    at = len(PNG_SIGNATURE)
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4])
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        at += 12 + size


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(name)))


def _apng(data: bytes) -> Animation | None:
    """None, too, where the animation breaks the rules: browsers then show the default image."""
    if b"acTL" not in data:
        return None
    header, plays, count = b"", 0, 0
    shared: list[bytes] = []
    default: list[bytes] = []
    controls: list[bytes] = []
    bodies: list[list[bytes]] = []
    sequence = 0
    for name, body in png_chunks(data):
        if name == b"IHDR":
            header = body
        elif name == b"acTL" and not default:
            count, plays = struct.unpack(">II", body)
        elif name in PNG_SHARED_CHUNKS:
            shared.append(png_chunk(name, body))
        elif name == b"IDAT":
            default.append(body)
            if controls:
                bodies[0].append(body)
        elif name in (b"fcTL", b"fdAT") and count:
            if int.from_bytes(body[:4]) != sequence or (name == b"fcTL" and len(body) != 26):
                return None
            sequence += 1
            if name == b"fcTL":
                controls.append(body)
                bodies.append([])
            elif not bodies:
                return None
            else:
                bodies[-1].append(body[4:])
    if not count or not header or not controls:
        return None
    width, height = struct.unpack_from(">II", header)
    has_poster = not data.find(b"fcTL") < data.find(b"IDAT")
    parts = []
    for control, bodies_of_frame in list(zip(controls, bodies, strict=True))[:count]:
        frame_width, frame_height, left, top, numerator, denominator, disposal, blend = struct.unpack_from(
            ">IIIIHHBB", control, 4
        )
        empty = not bodies_of_frame or not frame_width or not frame_height
        if empty or left + frame_width > width or top + frame_height > height:
            return None
        dispose = (Dispose.KEEP, Dispose.CLEAR, Dispose.PREVIOUS)[disposal] if disposal < 3 else Dispose.KEEP
        still = _png_still(struct.pack(">II", frame_width, frame_height) + header[8:], shared, bodies_of_frame)
        duration = numerator * 1000 / (denominator or 100)
        parts.append(Part(still, left, top, frame_width, frame_height, duration, dispose, blend=blend == 1))
    poster = Part(_png_still(header, shared, default), 0, 0, width, height) if has_poster else None
    if len(parts) < count:
        raise ImageRejected(Reason.TRUNCATED_IMAGE, f"{len(parts)} of {count} frames")
    return Animation(width, height, plays, tuple(parts), poster)


def _png_still(header: bytes, shared: list[bytes], bodies: list[bytes]) -> bytes:
    return b"".join(
        [PNG_SIGNATURE, png_chunk(b"IHDR", header), *shared, *(png_chunk(b"IDAT", body) for body in bodies),
         png_chunk(b"IEND", b"")]
    )  # fmt: skip


# --- WebP (RFC 9649)


def webp_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        yield data[at : at + 4], data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2


def with_webp_alpha(data: bytes) -> bytes:
    """The animation, declared to have alpha.

    libwebp's encoder doesn't declare it where only the canvas around the frames is clear; some viewers then show black.
    """
    if data[12:16] != b"VP8X":
        return data  # equal frames have become a still image
    return data[:20] + bytes((data[20] | WEBP_ALPHA_FLAG,)) + data[21:]


def _webp(data: bytes) -> Animation | None:
    if data[12:16] != b"VP8X" or not data[20] & WEBP_ANIMATION_FLAG:
        return None
    width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    profile, plays = b"", 1
    parts: list[Part] = []
    for name, body in webp_chunks(data[12:]):
        if name == b"ANIM":
            plays = int.from_bytes(body[4:6], "little")
        elif name == b"ICCP":
            profile = _webp_chunk(name, body)
        elif name == b"ANMF":
            left, top, frame_width, frame_height, duration = (
                int.from_bytes(body[at : at + 3], "little") for at in range(0, 15, 3)
            )
            still = _webp_still(frame_width + 1, frame_height + 1, profile, body[16:])
            flags = body[15]
            dispose = Dispose.CLEAR if flags & 1 else Dispose.KEEP
            box = (left * 2, top * 2, frame_width + 1, frame_height + 1)
            parts.append(Part(still, *box, float(duration), dispose, blend=not flags & 2))
    if not parts:
        raise ImageRejected(Reason.BROKEN_IMAGE, "an animated WebP without a frame")
    return Animation(width, height, plays, tuple(parts))


def _webp_still(width: int, height: int, profile: bytes, body: bytes) -> bytes:
    chunks = [(name, _webp_chunk(name, chunk)) for name, chunk in webp_chunks(body)]
    images = [chunk for name, chunk in chunks if name in (b"ALPH", b"VP8 ", b"VP8L")]
    flags = (WEBP_ICC_FLAG if profile else 0) | (
        WEBP_ALPHA_FLAG if any(name in (b"ALPH", b"VP8L") for name, _ in chunks) else 0
    )
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    file = b"".join([b"WEBP", _webp_chunk(b"VP8X", bytes((flags, 0, 0, 0)) + size), profile, *images])
    return b"RIFF" + struct.pack("<I", len(file)) + file


def _webp_chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
