"""Quality by eye: the lowest quality at which an image still looks like its original."""

import io
import random
from functools import partial
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter

from streams.compress.codec.auto_quality import MAX_DIFFERENCE, QUALITIES, TILE, TILES, smallest_alike, tiled
from streams.compress.codec.difference import SMALLEST, Original
from streams.compress.codec.shrink import shrink
from streams.compress.decoders.pool import DecoderPool
from tests.support.markdown import ROOT

LIMIT = 20_000_000
CLEAR = 6  # points: the finest scale, which is left out, moves a score by less
# Scores of SSIMULACRA 2 (crate ssimulacra2 0.5.1; more is better) of JPEGs of these qualities.
JUDGED = {
    "grace_hopper.jpg": {20: 29.4, 35: 51.2, 50: 59.8, 70: 78.2, 85: 88.0},
    "rocket.jpg": {20: 10.8, 35: 39.9, 50: 51.6, 70: 62.0, 85: 75.9},
    "coffee.png": {20: 32.2, 35: 52.1, 50: 60.6, 70: 69.3, 85: 77.7},
}


def grain(size: tuple[int, int], blur: float, contrast: float, seed: int = 7) -> Image.Image:
    """Coloured noise, as coarse as ``blur`` (pixels) and as strong as ``contrast`` (0 to 1)."""
    noise = Image.frombytes("RGB", size, random.Random(seed).randbytes(3 * size[0] * size[1]))
    noise = noise.filter(ImageFilter.GaussianBlur(blur)) if blur else noise
    return Image.blend(Image.new("RGB", size, (120, 130, 110)), noise, contrast)


def encoded(image: Image.Image, name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def jpeg(image: Image.Image, quality: int) -> bytes:
    return encoded(image, "JPEG", quality=quality)


def difference(image: Image.Image, data: bytes) -> float:
    return Original(image).difference(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.slow
def test_difference_ranks_losses_as_ssimulacra_does() -> None:
    """Those of one photo and of different ones."""
    found = {}
    for name, scores in JUDGED.items():
        image = Image.open(ROOT / "infra" / "demo" / name).convert("RGB")
        for quality, score in scores.items():
            found[name, quality] = (score, difference(image, jpeg(image, quality)))
    for (one, (score, far)), (other, (other_score, other_far)) in combinations(found.items(), 2):
        if abs(score - other_score) > CLEAR:
            assert (far < other_far) == (score > other_score), (one, other)


def test_same_pixels_have_no_difference() -> None:
    image = grain((200, 150), 1, 0.5)
    assert Original(image).difference(image.copy()) == pytest.approx(0, abs=0.01)


@pytest.mark.slow
@settings(max_examples=15)
@given(
    width=st.integers(SMALLEST, 200),
    height=st.integers(SMALLEST, 200),
    blur=st.sampled_from([0, 0.7, 1.5, 4]),
    contrast=st.floats(0, 1),
)
def test_chosen_quality_keeps_the_bound(width: int, height: int, blur: float, contrast: float) -> None:
    image = grain((width, height), blur, contrast)
    data, quality = smallest_alike(image, jpeg)
    assert data == jpeg(image, quality)
    assert difference(image, data) <= MAX_DIFFERENCE or quality == QUALITIES[-1]
    assert smallest_alike(image, jpeg) == (data, quality)


def test_quality_depends_on_the_picture() -> None:
    disc, lines = (Image.new("RGB", (256, 256), "white") for _ in range(2))
    ImageDraw.Draw(disc).ellipse((30, 30, 200, 220), fill=(180, 40, 30))
    for line in range(0, 256, 6):
        ImageDraw.Draw(lines).line((0, line, 255, line // 2), fill=(200, line, 0))
    assert [smallest_alike(image, jpeg)[1] for image in (disc, lines)] == [QUALITIES[0], QUALITIES[-1]]


@pytest.mark.slow
def test_large_image_is_judged_by_tiles_from_everywhere() -> None:
    size = (2000, 1200)
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    for corner in ((0, 0), (1900, 0), (0, 1100), (1900, 1100)):
        image.paste((200, 30, 30), (*corner, corner[0] + 100, corner[1] + 100))
    sample = tiled(image)
    assert sample.width * sample.height <= (TILES * TILE) ** 2
    counts = sample.getcolors(LIMIT)
    assert counts is not None
    assert sum(count for count, colour in counts if colour == (200, 30, 30)) > 30_000
    sizes: list[tuple[int, int]] = []

    def encode(one: Image.Image, quality: int) -> bytes:
        sizes.append(one.size)
        return jpeg(one, quality)

    data, quality = smallest_alike(image, encode)
    assert data == jpeg(image, quality)
    assert sizes.count(size) == 1


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 1), (SMALLEST - 1, 500), (20_000, SMALLEST), (TILE, 6000)])
def test_tiny_and_narrow_images_are_encoded(size: tuple[int, int]) -> None:
    data, quality = smallest_alike(Image.new("RGB", size, "red"), jpeg)
    assert Image.open(io.BytesIO(data)).size == size
    assert (quality == QUALITIES[-1]) == (min(size) < SMALLEST)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA"])
@pytest.mark.parametrize("target", ["jpeg", "webp", "avif"])
def test_result_tells_the_quality_it_was_encoded_with(mode: str, target: str) -> None:
    source = grain((150, 140), 1, 0.7).convert(mode)
    if mode.endswith("A"):
        source.putalpha(Image.linear_gradient("L").resize(source.size))
    shrunk = partial(shrink, encoded(source, "PNG"), max_pixels=LIMIT, target_format=target)
    result = shrunk(quality="auto")
    assert result.quality is not None
    assert result.quality in QUALITIES
    assert shrunk(quality=result.quality) == result


def test_other_formats_have_quality_50() -> None:
    film = [grain((80, 80), 1, 0.5, seed) for seed in range(3)]
    for data, target in (
        (encoded(film[0], "PNG", compress_level=0), None),
        (encoded(film[0], "TIFF"), None),
        (encoded(film[0], "GIF", save_all=True, append_images=film[1:]), "webp"),
    ):
        shrunk = partial(shrink, data, max_pixels=LIMIT, target_format=target)
        assert shrunk(quality="auto") == shrunk(quality=50)


def test_kept_original_has_no_quality() -> None:
    data = encoded(grain((100, 100), 2, 1), "JPEG", quality=3, optimize=True)
    result = shrink(data, quality="auto", max_pixels=LIMIT)
    assert (result.kept_original, result.quality) == (True, None)


@pytest.mark.slow
async def test_decoder_chooses_quality_inside_its_limits() -> None:
    data = encoded(grain((2000, 1500), 1, 0.6), "JPEG", quality=95)
    async with DecoderPool(1, timeout=20, memory_bytes=256 * 2**20) as pool:
        result = await pool.shrink(data, quality="auto", max_pixels=LIMIT)
    assert result == shrink(data, quality="auto", max_pixels=LIMIT)
    assert result.quality in QUALITIES
