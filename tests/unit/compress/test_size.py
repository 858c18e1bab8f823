"""Results that fit inside a width and a height."""

import io
import random
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageSequence, ImageStat

from streams.compress.codec import palette
from streams.compress.codec.shrink import Shrunk, shrink
from tests.support.images import ADOBE, chrm, gama, jpeg

RED = (255, 0, 0)


def encoded(image: Image.Image, pillow_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, pillow_format, **options)
    return buffer.getvalue()


def fit(data: bytes, width: int | None = None, height: int | None = None, **options: Any) -> Shrunk:
    return shrink(data, max_pixels=10_000_000, max_width=width, max_height=height, **options)


def opened(result: Shrunk) -> Image.Image:
    image = Image.open(io.BytesIO(result.data))
    image.load()
    return image


@pytest.mark.parametrize(
    ("box", "size"),
    [
        ((100, None), (100, 75)),
        ((None, 60), (80, 60)),
        ((100, 60), (80, 60)),
        ((1, 1), (1, 1)),
        ((333, 250), (333, 250)),
        ((399, 300), (399, 299)),
        ((400, 300), (400, 300)),
        ((65_535, 65_535), (400, 300)),
    ],
)
def test_image_fits_inside_and_is_never_enlarged(box: tuple[int | None, int | None], size: tuple[int, int]) -> None:
    result = fit(jpeg(400, 300), *box)
    assert (result.width, result.height) == opened(result).size == size


@pytest.mark.parametrize("target", ["jpeg", "png", "webp", "avif"])
def test_long_image_keeps_a_pixel_of_its_short_side(target: str) -> None:
    assert opened(fit(jpeg(1000, 2), 10, target_format=target)).size == (10, 1)


def test_bounds_are_those_of_the_upright_image() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    data = encoded(Image.linear_gradient("L").resize((400, 200)), "JPEG", exif=exif)
    assert opened(fit(data, 50)).size == (50, 100)


def test_hidden_colours_leave_no_fringe() -> None:
    """Red on transparent green: the edge of the result is red of less alpha."""
    image = Image.new("RGBA", (400, 400), (0, 255, 0, 0))
    image.paste((*RED, 255), (101, 101, 301, 301))
    result = opened(fit(encoded(image, "PNG"), 37, target_format="webp", quality=100)).convert("RGBA")
    _, green, _, alpha = result.split()
    edge = alpha.point([255 * (16 < level < 240) for level in range(256)])
    assert edge.getbbox()
    assert palette.highest(ImageChops.darker(green, edge)) <= 16


def test_filter_is_lanczos_of_all_pixels() -> None:
    noise = Image.frombytes("RGB", (300, 300), random.Random(5).randbytes(3 * 300 * 300))
    result = opened(fit(encoded(noise, "PNG"), 100, quality=100))
    assert not ImageChops.difference(
        result.convert("RGB"), noise.resize((100, 100), Image.Resampling.LANCZOS)
    ).getbbox()


def test_colour_space_is_converted_before() -> None:
    """An image of one colour in Adobe RGB has the same colour in each size."""
    plain = encoded(Image.new("RGB", (64, 64), (200, 100, 40)), "PNG")
    end_of_header = 33
    data = plain[:end_of_header] + gama(45_470) + chrm(*ADOBE) + plain[end_of_header:]
    colours = [opened(fit(data, width, quality=100)).convert("RGB").getpixel((5, 5)) for width in (None, 32)]
    assert colours[0] == colours[1] != (200, 100, 40)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF"])
def test_each_frame_of_an_animation_fits(kind: str) -> None:
    frames = [Image.new("RGB", (200, 100), "white") for _ in range(3)]
    for number, frame in enumerate(frames):
        frame.paste(RED, (60 * number, 0, 60 * number + 60, 100))
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=100, loop=0)
    result = fit(data, 50)
    with Image.open(io.BytesIO(result.data)) as image:
        assert image.size == (50, 25)
        shown = [frame.convert("RGB") for frame in ImageSequence.Iterator(image)]
    assert len(shown) == 3
    for number, frame in enumerate(shown):
        means = ImageStat.Stat(frame.crop((15 * number + 5, 5, 15 * number + 10, 20))).mean
        assert means == pytest.approx(RED, abs=60)


def test_each_page_of_a_tiff_fits_by_itself() -> None:
    pages = [Image.new("1", (300, 100), 1), Image.new("RGB", (40, 30), RED)]
    result = fit(encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:]), 150)
    with Image.open(io.BytesIO(result.data)) as image:
        sizes = []
        for number in range(2):
            image.seek(number)
            sizes.append((image.mode, image.size))
    assert sizes == [("L", (150, 50)), ("RGB", (40, 30))]


def test_poster_of_an_apng_fits_too() -> None:
    frames = [Image.new("RGB", (200, 100), colour) for colour in ("blue", "white", "red")]
    data = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=True, duration=100)
    assert opened(fit(data, 50)).size == (50, 25)


def test_only_an_image_in_all_its_pixels_is_kept() -> None:
    """A resized image may have more bytes than the original and is handed out nevertheless."""
    data = encoded(Image.new("L", (64, 64)), "PNG", optimize=True)
    assert fit(data, 64).kept_original
    smaller = fit(data, 63)
    assert not smaller.kept_original
    assert opened(smaller).size == (63, 63)


def test_size_is_made_before_the_limit_of_the_format() -> None:
    data = encoded(Image.new("L", (20_000, 4)), "PNG")
    assert opened(fit(data, 10_000, target_format="webp")).size == (10_000, 2)
