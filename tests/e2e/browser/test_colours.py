"""The codec shows the colours that Chromium shows, within 1 of 255, and within 20 (1 on average) for HDR."""

import io
import struct

import pytest
from PIL import Image
from playwright.sync_api import Browser

from streams.compress.codec.animation import read_frames
from tests.support.image_decoder import Compared, compared, judge_page
from tests.support.images import ADOBE, chrm, cicp, gama

LIMIT = 1_000_000
TRANSFERS = (1, 2, 4, 5, 6, 7, 8, 13, 14, 15, 17)
PRIMARIES = (1, 2, 4, 5, 6, 7, 9, 10, 11, 12, 22)


def ramp() -> Image.Image:
    """Grey, the primaries and a mixture, each from 0 to 255."""
    image = Image.new("RGB", (256, 5))
    rows = [[(i, i, i), (i, 0, 0), (0, i, 0), (0, 0, i), (i, 255 - i, 128)] for i in range(256)]
    image.putdata([rows[x][y] for y in range(5) for x in range(256)])
    return image


def png(*chunks: bytes) -> bytes:
    buffer = io.BytesIO()
    ramp().save(buffer, "PNG")
    return buffer.getvalue()[:33] + b"".join(chunks) + buffer.getvalue()[33:]


def avif(primaries: int, transfer: int) -> bytes:
    buffer = io.BytesIO()
    ramp().save(buffer, "AVIF", quality=100, subsampling="4:4:4", max_threads=1)
    data = bytearray(buffer.getvalue())
    struct.pack_into(">HH", data, data.index(b"colrnclx") + 8, primaries, transfer)
    return bytes(data)


def answers(browser: Browser, kind: str, files: list[bytes]) -> list[Compared | str]:
    pairs = []
    for data in files:
        buffer = io.BytesIO()
        read_frames(kind.upper(), data, LIMIT, only_first=False).first.save(buffer, "PNG")
        pairs.append(((data, kind), [(buffer.getvalue(), "png")]))
    return compared(judge_page(browser), pairs)


@pytest.mark.parametrize("kind", ["png", "avif"])
def test_colours_equal_the_browsers(kind: str, chromium: Browser) -> None:
    codes = [(1, transfer) for transfer in TRANSFERS] + [(primaries, 13) for primaries in PRIMARIES]
    files = [avif(*code) if kind == "avif" else png(cicp(*code, 0, 1)) for code in codes]
    for code, answer in zip(codes, answers(chromium, kind, files), strict=True):
        assert isinstance(answer, Compared), (code, answer)
        assert answer.same_frames(2 if kind == "avif" else 1), (code, answer)


def test_gamma_and_chromaticities_equal_the_browsers(chromium: Browser) -> None:
    chunks: list[tuple[bytes, ...]] = [(gama(value),) for value in (20_000, 45_455, 55_556, 100_000)]
    chunks += [(*one, chrm(*ADOBE)) for one in chunks]
    for answer in answers(chromium, "png", [png(*some) for some in chunks]):
        assert isinstance(answer, Compared), answer
        assert answer.same_frames(1), answer


@pytest.mark.parametrize("kind", ["png", "avif"])
def test_hdr_is_near_the_browsers(kind: str, chromium: Browser) -> None:
    codes = [(1, 16), (9, 16), (12, 16), (1, 18), (9, 18)]
    files = [avif(*code) if kind == "avif" else png(cicp(*code, 0, 1)) for code in codes]
    for code, answer in zip(codes, answers(chromium, kind, files), strict=True):
        assert isinstance(answer, Compared), (code, answer)
        assert answer.same_frames(20), (code, answer)
        assert all(mean < 1 for _, mean in answer.errors), (code, answer)
