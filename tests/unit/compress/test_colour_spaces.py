"""Colours come out as Chromium shows them, whatever says how to read the samples; the figures are its.

tests/e2e/browser/test_colours.py asks Chromium itself.
"""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageCms

from streams.compress.codec.animation import read_frames
from streams.compress.codec.outcome import ImageRejected
from streams.compress.codec.shrink import shrink
from tests.support.images import ADOBE, chrm, chunk, cicp, gama

IMAGES = Path(__file__).parents[2] / "images"
LIMIT = 1_000_000


def iccp(profile: bytes) -> bytes:
    return chunk(b"iCCP", b"name\0\0" + zlib.compress(profile))


def png(colour: Any, *chunks: bytes, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (8, 8), colour).save(buffer, "PNG")
    data = buffer.getvalue()
    return data[:33] + b"".join(chunks) + data[33:]


def seen(data: bytes, source: str = "PNG", at: tuple[int, int] = (2, 2)) -> tuple[int, ...]:
    pixel = read_frames(source, data, LIMIT, only_first=False).first.convert("RGB").getpixel(at)
    assert isinstance(pixel, tuple)
    return pixel


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GREY, RED = (128, 128, 128), (200, 0, 0)


@pytest.mark.parametrize(
    ("chunks", "grey", "red"),
    [
        ([cicp(1, 1, 0, 1)], 121, (197, 0, 0)),
        ([cicp(1, 4, 0, 1)], 129, (201, 0, 0)),
        ([cicp(1, 5, 0, 1)], 106, (189, 0, 0)),
        ([cicp(1, 7, 0, 1)], 141, (206, 0, 0)),
        ([cicp(1, 8, 0, 1)], 188, (229, 0, 0)),
        ([cicp(1, 17, 0, 1)], 118, (200, 0, 0)),
        ([cicp(5, 13, 0, 1)], 128, (204, 0, 0)),
        ([cicp(6, 13, 0, 1)], 128, (194, 26, 0)),
        ([cicp(9, 13, 0, 1)], 128, (250, 0, 0)),
        ([cicp(12, 13, 0, 1)], 128, (219, 0, 0)),
        ([cicp(9, 14, 0, 1)], 121, (247, 0, 0)),
        ([gama(100_000)], 188, (229, 0, 0)),
        ([gama(50_000)], 137, (206, 0, 0)),
        ([gama(45_000)], 128, RED),
        ([gama(0)], 128, RED),
        ([chrm(*ADOBE)], 128, RED),
        ([gama(45_455), chrm(*ADOBE)], 129, (234, 0, 0)),
        ([chunk(b"sRGB", b"\0"), gama(100_000)], 128, RED),
        ([iccp(SRGB), gama(100_000)], 128, RED),
        ([iccp(SRGB), cicp(12, 13, 0, 1)], 128, (219, 0, 0)),
        ([cicp(1, 13, 0, 0), gama(100_000)], 188, (229, 0, 0)),
        ([cicp(2, 2, 0, 1), gama(100_000)], 188, (229, 0, 0)),
    ],
)
def test_png_chunks_decide_in_their_order(chunks: list[bytes], grey: int, red: tuple[int, ...]) -> None:
    assert seen(png(GREY, *chunks)) == pytest.approx((grey,) * 3, abs=1)
    assert seen(png(RED, *chunks)) == pytest.approx(red, abs=1)
    assert seen(png(128, *chunks, mode="L")) == pytest.approx((grey,) * 3, abs=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "shown"),
    [((1, 16), {64: 30, 128: 132, 176: 237, 255: 255}), ((9, 18), {64: 43, 128: 99, 212: 216, 255: 255})],
)
def test_hdr_is_tone_mapped(code: tuple[int, int], shown: dict[int, int]) -> None:
    for sample, wanted in shown.items():
        assert seen(png((sample,) * 3, cicp(*code, 0, 1))) == pytest.approx((wanted,) * 3, abs=8)


def test_avif_of_display_p3_without_profile_is_converted() -> None:
    data = (IMAGES / "avif-nclx-p3.avif").read_bytes()
    image = read_frames("AVIF", data, LIMIT, only_first=False).first.convert("RGB")
    assert any(near(colour, (219, 0, 8)) for _, colour in image.getcolors(LIMIT) or ())


def near(pixel: Any, colour: tuple[int, ...]) -> bool:
    return all(abs(a - b) <= 4 for a, b in zip(pixel, colour, strict=True))


@pytest.mark.slow
def test_avif_of_pq_is_tone_mapped() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), GREY).save(buffer, "AVIF", quality=100, subsampling="4:4:4")
    data = bytearray(buffer.getvalue())
    struct.pack_into(">HH", data, data.index(b"colrnclx") + 8, 9, 16)
    assert seen(bytes(data), "AVIF") == pytest.approx((132,) * 3, abs=8)


def test_grey_jpeg_is_read_by_its_rgb_profile() -> None:
    data = (IMAGES / "grey-jpeg-rgb18.jpg").read_bytes()
    image = read_frames("JPEG", data, LIMIT, only_first=False).first
    assert image.mode == "L"
    assert 147 in {colour for _, colour in image.getcolors(LIMIT) or ()}


def test_16_bit_colour_key_hides_only_itself() -> None:
    image = read_frames("PNG", (IMAGES / "png16-trns.png").read_bytes(), LIMIT, only_first=False).first.convert("RGBA")
    colours = {colour for _, colour in image.getcolors(LIMIT) or ()}
    assert any(near(colour, (18, 86, 154, 255)) for colour in colours)
    assert min(colour[3] for colour in colours if isinstance(colour, tuple)) == 0


def damaged(data: bytes) -> bytes:
    return data[:-1] + bytes((data[-1] ^ 1,))


@pytest.mark.parametrize(
    "extra",
    [
        damaged(chunk(b"tEXt", b"Comment\0text")),
        damaged(chunk(b"pHYs", bytes(9))),
        damaged(iccp(SRGB)),
        damaged(gama(100_000)),
        chunk(b"tEXt", b"prompt\0" + b"x" * 3_000_000),
        chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(3_000_000))),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"x" * 3_000_000),
        iccp(SRGB + bytes(3_000_000)),
        iccp(b"no profile"),
        chunk(b"iCCP", b"name\0\0nothing compressed"),
        chunk(b"tIME", b""),
        chunk(b"gAMA", b""),
        chunk(b"cICP", b"\1"),
        chunk(b"eXIf", b"rubbish"),
    ],
)
def test_ancillary_chunks_are_no_reason(extra: bytes) -> None:
    assert seen(png(RED, extra)) == RED
    assert shrink(png(RED, extra), max_pixels=LIMIT).width == 8


def test_damaged_critical_chunk_is_a_reason() -> None:
    data = png(RED)
    at = data.index(b"IDAT") + 8
    with pytest.raises(ImageRejected):
        shrink(data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :], max_pixels=LIMIT)
