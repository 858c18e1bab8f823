"""Every frame of an animation looks in Chromium as it did before, and takes as long."""

import io

import pytest
from playwright.sync_api import Browser

from streams.compress.codec.animation import read_frames
from streams.compress.codec.shrink import shrink
from tests.animations import FORMATS, random_animation
from tests.image_decoder import Compared, compared, judge_page

SEEDS = range(1_000, 1_030)
LIMIT = 1_000_000
# Of 255: composing with alpha rounds; lossy formats are compared as written at quality 100.
COMPOSED = {"gif": 0, "png": 2, "webp": 2, "avif": 3}
WRITTEN = {"gif": 0, "png": 2, "webp": 4, "avif": 8}


def stills(name: str, data: bytes) -> list[tuple[bytes, str]]:
    """Each frame as the codec composes it, as a PNG."""
    files = []
    for image in read_frames(name.upper(), data, LIMIT, only_first=False).images:
        buffer = io.BytesIO()
        image.save(buffer, "PNG", compress_level=1)
        files.append((buffer.getvalue(), "png"))
    return files


@pytest.mark.parametrize("name", FORMATS)
def test_composed_frames_equal_the_browsers(name: str, chromium: Browser) -> None:
    samples = [random_animation(name, seed).data for seed in SEEDS]
    answers = compared(judge_page(chromium), [((data, name), stills(name, data)) for data in samples])
    for seed, answer in zip(SEEDS, answers, strict=True):
        assert isinstance(answer, Compared), (seed, answer)
        assert answer.same_frames(COMPOSED[name]), (seed, answer)


@pytest.mark.parametrize("name", FORMATS)
def test_written_animation_looks_and_plays_the_same(name: str, chromium: Browser) -> None:
    samples = [random_animation(name, seed).data for seed in SEEDS]
    made = [shrink(data, quality=100, max_pixels=LIMIT, target_format=name).data for data in samples]
    pairs = [((one, name), [(other, name)]) for one, other in zip(samples, made, strict=True)]
    for seed, answer in zip(SEEDS, compared(judge_page(chromium), pairs), strict=True):
        assert isinstance(answer, Compared), (seed, answer)
        assert answer.same_frames(WRITTEN[name]), (seed, answer)
        assert answer.same_times, (seed, answer)
