"""Every frame of an animation looks in Chromium as it did before, and takes as long."""

import pytest
from playwright.sync_api import Browser

from streams.compress.codec.shrink import shrink
from tests.support.animations import FORMATS, random_animation
from tests.support.image_decoder import COMPOSED, MAX_PIXELS, WRITTEN, Compared, compared, judge_page, stills

SEEDS = range(1_000, 1_030)


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
    made = [shrink(data, quality=100, max_pixels=MAX_PIXELS, target_format=name).data for data in samples]
    pairs = [((one, name), [(other, name)]) for one, other in zip(samples, made, strict=True)]
    for seed, answer in zip(SEEDS, compared(judge_page(chromium), pairs), strict=True):
        assert isinstance(answer, Compared), (seed, answer)
        assert answer.same_frames(WRITTEN[name]), (seed, answer)
        assert answer.same_times, (seed, answer)
