"""Animations are composed as the formats' specifications say: held against a model pixel by pixel."""

import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops

from streams.compress.codec import avif
from streams.compress.codec.animation import Frames, read_frames, write_webp_animation
from streams.compress.codec.outcome import ImageRejected, Reason
from streams.compress.codec.shrink import shrink
from tests.support.animations import FORMATS, random_animation

IMAGES = Path(__file__).parents[2] / "images"
LIMIT = 1_000_000
RED, GREEN, BLUE = (200, 30, 30), (20, 210, 25), (30, 20, 210)
STILL = ["webp", "png", "avif"]


def frames_of(name: str, data: bytes, *, only_first: bool = False) -> Frames:
    return read_frames(name.upper(), data, LIMIT, only_first=only_first)


def difference(one: Image.Image, other: Image.Image) -> int:
    """The largest of a sample, over white and over black."""
    over = [
        [Image.alpha_composite(Image.new("RGBA", image.size, colour), image.convert("RGBA")) for image in (one, other)]
        for colour in ("white", "black")
    ]
    apart = [ImageChops.difference(*pair).convert("RGB").tobytes() for pair in over]
    return max(map(max, apart))


def case(file: str, **options: Any) -> Image.Image:
    """A file of tests/images, made into what the options say."""
    return Image.open(io.BytesIO(shrink((IMAGES / file).read_bytes(), max_pixels=LIMIT, **options).data))


def frame(image: Image.Image, number: int) -> Image.Image:
    image.seek(number)
    return image.convert("RGBA")


def near(pixel: Any, colour: tuple[int, ...], tolerance: int = 12) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(pixel, colour, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=100)
@given(seed=st.integers(0, 2**32))
def test_composition_equals_the_model(name: str, seed: int) -> None:
    sample = random_animation(name, seed)
    frames = frames_of(name, sample.data)
    tolerance = {"gif": 0}.get(name, 3)
    assert all(difference(*pair) <= tolerance for pair in zip(sample.shown, frames.images, strict=True))
    assert list(frames.durations) == pytest.approx(sample.durations)
    assert frames.plays == sample.plays


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
@example(seed=6696)  # two colours that differ by less than a palette of Pillow's tells apart
@given(seed=st.integers(0, 2**32))
def test_an_animation_survives_its_own_format(name: str, seed: int) -> None:
    """At quality 100, read back by the reader that the model has checked; equal frames may have become one."""
    sample = random_animation(name, seed)
    made = frames_of(name, shrink(sample.data, quality=100, max_pixels=LIMIT, target_format=name).data)
    timeline = [image for image, ms in zip(made.images, made.durations, strict=True) for _ in range(round(ms) or 1)]
    at = 0
    for image, milliseconds in zip(sample.shown, sample.durations, strict=True):
        assert difference(image, timeline[min(at, len(timeline) - 1)]) <= {"gif": 0, "png": 2}.get(name, 10)
        at += milliseconds
    if len(made.images) > 1:
        assert sum(made.durations) == pytest.approx(sum(sample.durations))
        assert made.plays == sample.plays


def test_first_gif_frame_leaves_its_surroundings_clear() -> None:
    frames = frames_of("gif", (IMAGES / "gif-im-optimize.gif").read_bytes())
    assert len(frames.images) == 8
    assert all(image.convert("RGBA").getpixel((0, 0))[3] == 0 for image in frames.images)  # type: ignore[index]


@pytest.mark.parametrize("to", STILL)
def test_still_gif_smaller_than_its_canvas_stays_so(to: str) -> None:
    image = frame(case("gif-part-of-canvas.gif", target_format=to), 0)
    shown = image.getchannel("A").point(lambda value: 255 * (value > 128)).getbbox()
    assert shown is not None
    assert (shown[2] - shown[0], shown[3] - shown[1]) == (60, 60)
    assert case("gif-part-of-canvas.gif", target_format="jpeg").convert("RGB").getpixel((1, 1)) == (255, 255, 255)


def test_gif_disposal_2_clears_opaque_frames() -> None:
    image = frame(case("gif-dispose2-opaque.gif"), 1)
    assert image.getpixel((1, 1))[3] == 0  # type: ignore[index]


def test_apng_disposal_restores_what_was_before() -> None:
    first, second, third = frames_of("png", (IMAGES / "apng-over-then-previous.png").read_bytes()).images
    assert near(second.getpixel((30, 30)), GREEN, 30)
    assert third.getpixel((30, 30)) == first.getpixel((30, 30))
    assert near(third.getpixel((90, 90)), BLUE, 30)


def test_apng_blends_over_clear_without_other_colours() -> None:
    second = frames_of("png", (IMAGES / "apng-over-clear.png").read_bytes()).images[1]
    assert near(second.getpixel((60, 60)), (*BLUE, 128), 30)


@pytest.mark.parametrize("to", ["webp", "avif", "gif"])
def test_poster_never_shows_in_the_animation(to: str) -> None:
    image = case("apng-poster-part.png", target_format=to)
    assert getattr(image, "n_frames", 1) == 2
    assert frame(image, 0).getpixel((1, 1))[3] < 10  # type: ignore[index]


@pytest.mark.parametrize("to", [None, *STILL])
def test_single_frame_with_poster_is_a_still_image(to: str | None) -> None:
    image = case("apng-poster-1.png", target_format=to)
    assert getattr(image, "n_frames", 1) == 1
    assert near(image.convert("RGB").getpixel((60, 40)), GREEN, 30)


@pytest.mark.parametrize("plays", [0, 1, 3])
def test_avif_keeps_how_often_it_plays(plays: int) -> None:
    images = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN)]
    buffer = io.BytesIO()
    images[0].save(buffer, "AVIF", save_all=True, append_images=images[1:], duration=[100, 50])
    data = avif.with_plays(buffer.getvalue(), plays)
    assert avif.plays(data) == plays
    assert avif.plays(shrink(data, max_pixels=LIMIT, quality=10).data) == plays
    for to in ("webp", "png", "gif"):
        made = shrink(data, max_pixels=LIMIT, target_format=to).data
        assert frames_of(to, made).plays == plays


def test_avif_that_plays_once_goes_on_doing_so() -> None:
    assert avif.plays((IMAGES / "avif-once.avif").read_bytes()) == 1
    assert avif.plays(shrink((IMAGES / "avif-once.avif").read_bytes(), max_pixels=LIMIT).data) == 1


@pytest.mark.slow
@pytest.mark.parametrize("file", ["mpo.jpg", "mpo-stale.jpg", "pages-same.tif", "pages-diff.tif"])
@pytest.mark.parametrize("to", [*STILL, "gif"])
def test_previews_and_pages_are_no_frames(file: str, to: str) -> None:
    image = case(file, target_format=to)
    assert getattr(image, "n_frames", 1) == 1
    with Image.open(IMAGES / file, formats=["JPEG" if file.endswith("jpg") else "TIFF"]) as source:
        assert image.size == source.size


def test_equal_frames_become_a_still_webp() -> None:
    frame = Image.new("RGBA", (16, 16), (*RED, 128))
    frames = Frames([frame, frame], [100, 100])
    image = Image.open(io.BytesIO(write_webp_animation(frames, quality=100)))
    assert image.convert("RGBA").getpixel((8, 8)) == (*RED, 128)


def test_gif_cut_within_a_later_frame_plays_the_rest() -> None:
    data = (IMAGES / "gif-dispose2-opaque.gif").read_bytes()
    assert len(frames_of("gif", data[:-300]).images) == 1


def test_apng_without_all_its_frames_is_truncated() -> None:
    data = (IMAGES / "apng-over-clear.png").read_bytes()
    with pytest.raises(ImageRejected) as caught:
        shrink(data[: data.rindex(b"fcTL") - 4], max_pixels=LIMIT)
    assert caught.value.reason == Reason.TRUNCATED_IMAGE
