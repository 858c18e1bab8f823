"""Random GIFs, APNGs, animated WebPs and AVIF sequences, and a model of how each frame looks.

Independent of the product: the files are put together here byte for byte, and the model is the specifications'
arithmetic, pixel by pixel.
"""

import io
import random
import struct
import zlib
from dataclasses import dataclass

from PIL import Image

FORMATS = ("gif", "png", "webp", "avif")
NOTHING, KEEP, CLEAR, PREVIOUS = range(4)  # disposal methods as GIF numbers them
OUTSIDE = 6  # pixels by which a frame of a GIF may leave the canvas


@dataclass(frozen=True)
class Frame:
    """A frame as it is stored; ``image`` is RGBA."""

    image: Image.Image
    left: int
    top: int
    duration: int
    dispose: int
    blend: bool


@dataclass(frozen=True)
class Sample:
    """A file, and what a viewer shows of it: frames (RGBA), durations (ms), how often it plays (0: for ever)."""

    data: bytes
    shown: list[Image.Image]
    durations: list[int]
    plays: int


def random_animation(name: str, seed: int) -> Sample:
    """An animation in the format ``name`` of FORMATS; the same for the same ``seed``."""
    dice = random.Random(f"{name} {seed}")
    return {"gif": _gif, "png": _apng, "webp": _webp, "avif": _avif}[name](dice)


def model(size: tuple[int, int], frames: list[Frame]) -> list[Image.Image]:
    """What is shown at each frame: composition as GIF89a 23, PNG 3rd edition 11.3.6 and RFC 9649 2.7.1.1 define it."""
    width, height = size
    canvas = [(0.0, 0.0, 0.0, 0.0)] * (width * height)
    seen = []
    for frame in frames:
        before = list(canvas)
        source = frame.image.load()
        assert source is not None
        covered = [
            (x, y)
            for y in range(min(frame.image.height, height - frame.top))
            for x in range(min(frame.image.width, width - frame.left))
        ]
        for x, y in covered:
            at = (y + frame.top) * width + x + frame.left
            pixel = source[x, y]
            assert isinstance(pixel, tuple)
            canvas[at] = _over(pixel, canvas[at]) if frame.blend else tuple(map(float, pixel))  # type: ignore[assignment]
        shown = Image.new("RGBA", size)
        shown.putdata([tuple(map(round, pixel)) for pixel in canvas])
        seen.append(shown)
        if frame.dispose == PREVIOUS:
            canvas = before
        elif frame.dispose == CLEAR:
            for x, y in covered:
                canvas[(y + frame.top) * width + x + frame.left] = (0.0, 0.0, 0.0, 0.0)
    return seen


def _over(above: tuple[int, ...], below: tuple[float, ...]) -> tuple[float, ...]:
    top, bottom = above[3] / 255, below[3] / 255
    alpha = top + bottom * (1 - top)
    if not alpha:
        return (0.0, 0.0, 0.0, 0.0)
    return (*((a * top + b * bottom * (1 - top)) / alpha for a, b in zip(above[:3], below, strict=False)), alpha * 255)


def _picture(dice: random.Random, size: tuple[int, int], colours: list[tuple[int, ...]]) -> Image.Image:
    """A few rectangles in the given colours (RGBA)."""
    image = Image.new("RGBA", size, dice.choice(colours))
    for _ in range(dice.randrange(4)):
        left, top = dice.randrange(size[0]), dice.randrange(size[1])
        image.paste(dice.choice(colours), (left, top, left + dice.randint(1, size[0]), top + dice.randint(1, size[1])))
    return image


def _colours(dice: random.Random, alphas: list[int]) -> list[tuple[int, ...]]:
    return [(*dice.randbytes(3), dice.choice(alphas)) for _ in range(dice.randint(2, 5))]


def _place(dice: random.Random, canvas: tuple[int, int], step: int = 1) -> tuple[int, int, int, int]:
    """Left, top, width, height; now and then the whole canvas."""
    if dice.random() < 0.2:
        return 0, 0, *canvas
    left, top = (dice.randrange(0, side, step) for side in canvas)
    return left, top, dice.randint(1, canvas[0] - left), dice.randint(1, canvas[1] - top)


def _canvas(dice: random.Random) -> tuple[int, int]:
    return dice.randint(4, 20), dice.randint(4, 16)


# --- GIF


def _gif(dice: random.Random) -> Sample:
    canvas = _canvas(dice)
    plays = dice.choice((0, 1, 2, 5))
    table = [tuple(dice.randbytes(3)) for _ in range(8)]
    data = (
        b"GIF89a" + struct.pack("<HHBBB", *canvas, 0x80 | 2, dice.randrange(8), 0) + bytes(v for c in table for v in c)
    )
    if plays != 1:
        repeats = struct.pack("<H", max(0, plays - 1))
        data += b"\x21\xff\x0bNETSCAPE2.0\x03\x01" + repeats + b"\0"
    frames = []
    for number in range(dice.randint(1, 6)):
        left, top, width, height = _place(dice, canvas)
        if number and dice.random() < 0.1:
            width, height = width + OUTSIDE, height + OUTSIDE
        local = [tuple(dice.randbytes(3)) for _ in range(8)] if dice.random() < 0.3 else table
        clear = dice.randrange(8) if dice.random() < 0.6 else None
        indices = Image.new("P", (width, height), dice.randrange(8))
        for _ in range(dice.randrange(5)):
            x, y = dice.randrange(width), dice.randrange(height)
            indices.paste(dice.randrange(8), (x, y, x + dice.randint(1, width), y + dice.randint(1, height)))
        frame = Frame(
            Image.new("RGBA", (width, height)), left, top, dice.randint(2, 30) * 10, dice.randrange(4), blend=True
        )
        values = indices.tobytes()
        frame.image.putdata([(0, 0, 0, 0) if v == clear else (*local[v], 255) for v in values])
        frames.append(frame)
        interlaced = dice.random() < 0.3
        rows = [y for start, step in ((0, 8), (4, 8), (2, 4), (1, 2)) for y in range(start, height, step)]
        stored = b"".join(values[y * width : (y + 1) * width] for y in (rows if interlaced else range(height)))
        flags = frame.dispose << 2 | (clear is not None)
        data += struct.pack("<BBBBHBB", 0x21, 0xF9, 4, flags, frame.duration // 10, clear or 0, 0)
        own = local is not table
        data += struct.pack("<BHHHHB", 0x2C, left, top, width, height, (0x82 if own else 0) | interlaced << 6)
        data += (bytes(v for c in local for v in c) if own else b"") + _lzw(stored)
    return Sample(data + b"\x3b", model(canvas, frames), [frame.duration for frame in frames], plays)


def _lzw(indices: bytes) -> bytes:
    """LZW without a dictionary: nine bits a code, cleared before a tenth is needed."""
    codes = [code for at in range(0, len(indices), 250) for code in (256, *indices[at : at + 250])] + [257]
    bits = sum(code << 9 * place for place, code in enumerate(codes))
    packed = bits.to_bytes(-(-9 * len(codes) // 8), "little")
    blocks = [packed[at : at + 255] for at in range(0, len(packed), 255)]
    return b"\x08" + b"".join(bytes((len(block),)) + block for block in blocks) + b"\0"


# --- APNG


def _apng(dice: random.Random) -> Sample:
    canvas = _canvas(dice)
    plays = dice.choice((0, 1, 3))
    kind = dice.choice(("RGBA", "RGB", "RGB with a key", "palette", "L", "LA"))
    colours = _colours(dice, [255] if kind in ("RGB", "L") else [0, 255] if "key" in kind else [0, 40, 128, 200, 255])
    if kind in ("L", "LA"):
        colours = [(c[0], c[0], c[0], c[3]) for c in colours]
    if kind == "RGB with a key":
        colours = [c if c[3] else (1, 2, 3, 0) for c in colours]
    type_ = {"RGBA": 6, "RGB": 2, "RGB with a key": 2, "palette": 3, "L": 0, "LA": 4}[kind]
    shared = b""
    if kind == "palette":
        shared = _chunk(b"PLTE", bytes(v for c in colours for v in c[:3])) + _chunk(
            b"tRNS", bytes(c[3] for c in colours)
        )
    elif kind == "RGB with a key":
        shared = _chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3))

    def compressed(image: Image.Image) -> bytes:
        values = list(image.get_flattened_data())
        cells = {
            6: bytes, 2: lambda p: bytes(p[:3]), 3: lambda p: bytes((colours.index(p),)),
            0: lambda p: bytes(p[:1]), 4: lambda p: bytes((p[0], p[3])),
        }[type_]  # fmt: skip
        width = image.width
        rows = (b"\0" + b"".join(map(cells, values[at : at + width])) for at in range(0, len(values), width))
        return zlib.compress(b"".join(rows))

    poster = dice.random() < 0.25
    frames = []
    for number in range(dice.randint(1, 6)):
        left, top, width, height = (0, 0, *canvas) if not number and not poster else _place(dice, canvas)
        image = _picture(dice, (width, height), colours)
        dispose = dice.choice((KEEP, CLEAR, PREVIOUS))
        frames.append(Frame(image, left, top, dice.randint(2, 300), dispose, blend=dice.random() < 0.5))
    data = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", *canvas, 8, type_, 0, 0, 0))
    data += shared + _chunk(b"acTL", struct.pack(">II", len(frames), plays))
    if poster:
        data += _chunk(b"IDAT", compressed(_picture(dice, canvas, colours)))
    sequence = 0
    for number, frame in enumerate(frames):
        control = struct.pack(
            ">IIIIIHHBB", sequence, *frame.image.size, frame.left, frame.top, frame.duration, 1000,
            {KEEP: 0, CLEAR: 1, PREVIOUS: 2}[frame.dispose], frame.blend,
        )  # fmt: skip
        data += _chunk(b"fcTL", control)
        sequence += 1
        if not number and not poster:
            data += _chunk(b"IDAT", compressed(frame.image))
        else:
            data += _chunk(b"fdAT", struct.pack(">I", sequence) + compressed(frame.image))
            sequence += 1
    data += _chunk(b"IEND", b"")
    return Sample(data, model(canvas, frames), [frame.duration for frame in frames], plays)


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


# --- WebP


def _webp(dice: random.Random) -> Sample:
    canvas = _canvas(dice)
    plays = dice.choice((0, 1, 4))
    colours = _colours(dice, [255] if dice.random() < 0.4 else [0, 60, 128, 255])
    frames = []
    chunks = b""
    for _ in range(dice.randint(1, 6)):
        left, top, width, height = _place(dice, canvas, step=2)
        image = _picture(dice, (width, height), colours)
        frame = Frame(image, left, top, dice.randint(2, 300), dice.choice((KEEP, CLEAR)), blend=dice.random() < 0.5)
        frames.append(frame)
        still = io.BytesIO()
        image.save(still, "WEBP", lossless=True, exact=True)
        place = (left // 2, top // 2, width - 1, height - 1, frame.duration)
        body = b"".join(struct.pack("<I", value)[:3] for value in place)
        bitstream = still.getvalue()[still.getvalue().index(b"VP8L") :]
        body += bytes(((frame.dispose == CLEAR) | (not frame.blend) << 1,)) + bitstream
        chunks += _riff(b"ANMF", body)
    size = b"".join(struct.pack("<I", side - 1)[:3] for side in canvas)
    flags = 0x02 | 0x10  # animated, with alpha
    file = b"WEBP" + _riff(b"VP8X", bytes((flags, 0, 0, 0)) + size)
    file += _riff(b"ANIM", dice.randbytes(4) + struct.pack("<H", plays)) + chunks
    data = b"RIFF" + struct.pack("<I", len(file)) + file
    return Sample(data, model(canvas, frames), [frame.duration for frame in frames], plays)


def _riff(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


# --- AVIF


def _avif(dice: random.Random) -> Sample:
    """Whole frames: AVIF has no composition."""
    canvas = _canvas(dice)
    colours = _colours(dice, [255] if dice.random() < 0.5 else [0, 128, 255])
    frames = [_picture(dice, canvas, colours) for _ in range(dice.randint(2, 5))]
    durations = [dice.randint(2, 300) for _ in frames]
    buffer = io.BytesIO()
    frames[0].save(
        buffer, "AVIF", save_all=True, append_images=frames[1:], duration=durations, quality=100, subsampling="4:4:4",
        max_threads=1,
    )  # fmt: skip
    return Sample(buffer.getvalue(), frames, durations, 0)
