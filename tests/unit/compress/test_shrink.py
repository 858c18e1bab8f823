"""What the codec promises of its results: made images for each rule, and photos in every form."""

import gzip
import io
import random
import struct
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pyvips
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageCms, ImageDraw, ImageFilter, ImageOps, ImageStat

from streams.compress.codec import palette
from streams.compress.codec.containers import with_webp_alpha
from streams.compress.codec.shrink import OUTPUT_FORMATS, ImageRejected, Reason, Shrunk, shrink
from tests.support.images import png_header

LIMIT = 100_000_000
RED, BLUE, CLEAR = (200, 30, 30), (30, 30, 200), (0, 0, 0, 0)


def encoded(image: Image.Image, pillow_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, pillow_format, **options)
    return buffer.getvalue()


def opened(result: Shrunk) -> Image.Image:
    image = Image.open(io.BytesIO(result.data))
    image.load()
    return image


def photo(width: int = 160, height: int = 120) -> Image.Image:
    """Smooth colours with some noise: like a photograph, every encoder can shrink it."""
    size = (width, height)
    noise = Image.frombytes("L", size, random.Random(7).randbytes(width * height))
    grey = Image.blend(Image.new("L", size, 128), noise, 0.2)
    return Image.merge("RGB", [Image.linear_gradient("L").resize(size), Image.radial_gradient("L").resize(size), grey])


def mean_error(one: Image.Image, other: Image.Image) -> float:
    assert one.size == other.size
    means = ImageStat.Stat(ImageChops.difference(one.convert("RGB"), other.convert("RGB"))).mean
    return float(sum(means) / len(means))


def rejection(data: bytes, **options: Any) -> Reason:
    with pytest.raises(ImageRejected) as caught:
        shrink(data, **{"max_pixels": LIMIT, **options})
    return caught.value.reason


# --- formats


@pytest.mark.parametrize("name", OUTPUT_FORMATS)
def test_each_format_comes_back_as_itself_and_smaller(name: str) -> None:
    data = encoded(photo(), name, **({"quality": 95} if name in ("jpeg", "webp", "avif") else {}))
    result = shrink(data, max_pixels=LIMIT)
    assert result.format == name
    assert (opened(result).format or "").lower() == name
    assert (result.width, result.height) == (160, 120)
    assert len(result.data) <= len(data)
    assert result.kept_original == (result.data == data)


@pytest.mark.parametrize("pillow_format", ["BMP", "PPM"])
def test_a_format_that_no_browser_needs_becomes_jpeg(pillow_format: str) -> None:
    assert shrink(encoded(photo(), pillow_format), max_pixels=LIMIT).format == "jpeg"


def test_a_bmp_with_alpha_becomes_png() -> None:
    """Of 32 bits with a mask for alpha (BITMAPV4HEADER), which Pillow reads but does not write."""
    masks = struct.pack("<4I", 0x00FF0000, 0x0000FF00, 0x000000FF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, 8, 8, 1, 32, 3, 256, 2835, 2835, 0, 0) + masks + bytes(52)
    pixels = bytes((30, 30, 200, 128)) * 64
    data = b"BM" + struct.pack("<IHHI", 14 + 108 + len(pixels), 0, 0, 14 + 108) + header + pixels
    result = shrink(data, max_pixels=LIMIT)
    assert result.format == "png"
    assert opened(result).convert("RGBA").getpixel((3, 3)) == (200, 30, 30, 128)


@pytest.mark.parametrize("name", OUTPUT_FORMATS)
def test_target_format_is_kept_even_if_larger(name: str) -> None:
    data = encoded(Image.new("RGB", (8, 8), RED), "BMP")
    result = shrink(data, max_pixels=LIMIT, target_format=name)
    assert result.format == name
    assert not result.kept_original


def test_an_unknown_target_format_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="bmp"):
        shrink(encoded(photo(), "PNG"), max_pixels=LIMIT, target_format="bmp")


@pytest.mark.parametrize("name", ["EPS", "PDF", "ICO", "DDS", "JPEG2000", "QOI", "ICNS"])
def test_an_image_of_another_format_is_unsupported(name: str) -> None:
    assert rejection(encoded(photo(64, 64), name)) == Reason.UNSUPPORTED_FORMAT


@pytest.mark.parametrize(
    "data",
    [
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"<?xml version='1.0'?>\n<svg/>",
        b"8BPS\0\1",
        b"\0\0\0\x18ftypisom\0\0\0\0isommp42",
    ],
)
def test_a_known_image_or_video_signature_is_unsupported(data: bytes) -> None:
    assert rejection(data) == Reason.UNSUPPORTED_FORMAT


@pytest.mark.parametrize("data", [b"", b"\0", b"<p>404", b'{"error": 1}', b"P", b"Pa\n"])
def test_non_images_get_specific_reasons(data: bytes) -> None:
    assert rejection(data) == Reason.NOT_AN_IMAGE


def test_reason_shows_no_byte_of_the_answer() -> None:
    with pytest.raises(ImageRejected) as caught:
        shrink(b"secret of an inner page", max_pixels=LIMIT)
    assert caught.value.detail == "its first bytes are those of no image format"


def test_a_small_original_is_kept_byte_for_byte() -> None:
    data = encoded(photo(), "JPEG", quality=5, optimize=True)
    result = shrink(data, max_pixels=LIMIT)
    assert result.kept_original
    assert result.data == data


# --- size limits


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    assert rejection(png_header(50_000, 50_000)) == Reason.TOO_MANY_PIXELS


@pytest.mark.parametrize("name", ["webp", "gif", "tiff", "avif", "png", "jpeg"])
def test_the_pixel_limit_holds_exactly(name: str) -> None:
    data = encoded(photo(50, 40), name)
    shrink(data, max_pixels=2_000)
    assert rejection(data, max_pixels=1_999) == Reason.TOO_MANY_PIXELS


@pytest.mark.parametrize("name", ["webp", "gif", "png", "avif", "tiff"])
def test_the_pixel_limit_counts_every_frame(name: str) -> None:
    frames = [photo(20, 20).rotate(30 * turn) for turn in range(5)]
    data = encoded(frames[0], name, save_all=True, append_images=frames[1:])
    shrink(data, max_pixels=2_000)
    assert rejection(data, max_pixels=1_999) == Reason.TOO_MANY_PIXELS


def test_pixel_limit_ignores_unused_frames() -> None:
    frames = [photo(20, 20).rotate(30 * turn) for turn in range(5)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert shrink(data, max_pixels=400, target_format="jpeg").format == "jpeg"


def test_sixteen_bit_pixels_count_twice() -> None:
    data = encoded(Image.new("I;16", (50, 40)), "PNG")
    shrink(data, max_pixels=4_000)
    assert rejection(data, max_pixels=3_999) == Reason.TOO_MANY_PIXELS


def test_too_many_frames_are_refused() -> None:
    frames = [Image.new("L", (1, 1), turn % 2 * 255) for turn in range(2_001)]
    assert rejection(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])) == Reason.TOO_MANY_FRAMES


def test_limit_above_pillows_is_honoured_and_restored() -> None:
    before = Image.MAX_IMAGE_PIXELS
    side = 13_400  # more than twice Pillow's default limit
    assert before is not None
    assert side * side > 2 * before
    result = shrink(encoded(Image.new("1", (side, side)), "PNG"), max_pixels=side * side)
    assert (result.width, result.height) == (side, side)
    assert before == Image.MAX_IMAGE_PIXELS


def test_side_too_long_for_target_format_is_rejected() -> None:
    data = encoded(Image.new("1", (16_384, 1)), "PNG")
    assert rejection(data, target_format="webp") == Reason.CANNOT_ENCODE


# --- orientation, metadata


@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "tiff", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_result_is_upright_without_saying_so(name: str, orientation: int) -> None:
    image = Image.new("RGB", (90, 60), BLUE)
    image.paste(RED, (0, 0, 30, 20))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, name, exif=exif)
    # Another format, so that the original, which a viewer turns by itself, can't be kept.
    result = shrink(data, max_pixels=LIMIT, target_format="png" if name != "png" else "webp")
    reference = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert (result.width, result.height) == reference.size == ((60, 90) if orientation > 4 else (90, 60))
    assert mean_error(opened(result), reference) < 4
    assert opened(result).getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "tiff", "avif"])
def test_metadata_is_dropped(name: str) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a secret description"
    exif.get_ifd(0x8825)[1] = "N"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    extra: dict[str, Any] = {"comment": "a secret comment"} if name == "jpeg" else {}
    high = {"quality": 95} if name in ("jpeg", "webp", "avif") else {}
    data = encoded(photo(), name, exif=exif, icc_profile=profile, **extra, **high)
    assert b"secret" in data
    result = shrink(data, max_pixels=LIMIT)
    assert not result.kept_original
    assert b"secret" not in result.data
    assert "icc_profile" not in opened(result).info
    assert 0x8825 not in opened(result).getexif()


def test_a_damaged_exif_block_or_profile_harms_no_image() -> None:
    data = encoded(photo(), "JPEG", quality=95, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff", icc_profile=b"\xff" * 200)
    assert mean_error(opened(shrink(data, max_pixels=LIMIT)), photo_of(data)) < 6


def photo_of(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


# --- colour


def test_a_grey_jpeg_stays_grey() -> None:
    assert opened(shrink(encoded(photo().convert("L"), "JPEG", quality=95), max_pixels=LIMIT)).mode == "L"


def test_chroma_is_halved_in_jpeg() -> None:
    image = opened(shrink(encoded(photo(), "JPEG", quality=95, subsampling="4:4:4"), max_pixels=LIMIT))
    assert [(h, v) for _, h, v, _ in image.layer] == [(2, 2), (1, 1), (1, 1)]  # type: ignore[attr-defined]  # of Pillow's plugin


def test_a_cmyk_jpeg_becomes_what_browsers_show() -> None:
    cmyk = Image.new("CMYK", (64, 64), (255, 0, 255, 51))
    result = opened(shrink(encoded(cmyk, "JPEG", quality=95), max_pixels=LIMIT))
    assert result.mode == "RGB"
    assert mean_error(result, Image.new("RGB", (64, 64), (0, 204, 0))) < 4


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_sixteen_bit_grey_keeps_its_brightness(mode: str) -> None:
    wide = Image.new("I;16", (256, 8))
    for x in range(256):
        for y in range(8):
            wide.putpixel((x, y), x * 257)
    data = encoded(wide, "PNG" if mode == "I;16" else "TIFF")
    result = opened(shrink(data, max_pixels=LIMIT, quality=100)).convert("L")
    assert list(result.crop((0, 0, 256, 1)).tobytes()) == list(range(256))


def test_colour_key_of_16_bit_png_hides_one_level() -> None:
    wide = Image.new("I;16", (64, 64), 30_000)
    wide.paste(30_001, (0, 0, 32, 64))
    result = opened(shrink(encoded(wide, "PNG", transparency=30_000), max_pixels=LIMIT, quality=100))
    alpha = result.convert("RGBA").getchannel("A")
    assert (alpha.getpixel((0, 0)), alpha.getpixel((63, 0))) == (255, 0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("target", OUTPUT_FORMATS)
def test_every_mode_can_be_written_to_every_format(mode: str, target: str) -> None:
    image = photo().quantize(64) if mode == "P" else photo().convert(mode)
    result = shrink(encoded(image, "PNG"), max_pixels=LIMIT, target_format=target)
    assert mean_error(opened(result), image.convert("RGB")) < 8


def test_float_pixels_have_no_white_and_are_unsupported() -> None:
    assert rejection(encoded(Image.new("F", (8, 8), 0.5), "TIFF")) == Reason.UNSUPPORTED_FORMAT


# --- alpha


def hiding(visible: tuple[int, int, int] = RED) -> Image.Image:
    """Left half shown, right half invisible, with something under it."""
    image = Image.new("RGBA", (64, 64), (*visible, 255))
    image.paste((*BLUE, 0), (32, 0, 64, 64))
    return image


@pytest.mark.parametrize("name", ["png", "webp", "tiff", "avif"])
def test_hidden_pixels_are_cleared(name: str) -> None:
    image = opened(shrink(encoded(hiding(), "PNG"), max_pixels=LIMIT, target_format=name)).convert("RGBA")
    pixel = image.getpixel((60, 30))
    assert isinstance(pixel, tuple)
    assert pixel[3] < 4
    assert pixel[2] < 100


def test_jpeg_shows_white_where_nothing_was() -> None:
    image = opened(shrink(encoded(hiding(), "PNG"), max_pixels=LIMIT, target_format="jpeg"))
    assert image.getpixel((60, 30)) == (255, 255, 255)


def test_an_alpha_channel_that_hides_nothing_is_dropped() -> None:
    assert not opened(shrink(encoded(photo().convert("RGBA"), "PNG"), max_pixels=LIMIT)).has_transparency_data


@pytest.mark.parametrize("key", [0, b"\x00\x80\xff"])
def test_a_transparent_palette_entry_stays_transparent(key: int | bytes) -> None:
    image = Image.new("P", (90, 40))
    image.putpalette([*RED, *BLUE, 0, 255, 0])
    image.paste(1, (30, 0, 60, 40))
    image.paste(2, (60, 0, 90, 40))
    data = encoded(image, "PNG", transparency=key, compress_level=0)
    made = opened(shrink(data, max_pixels=LIMIT)).convert("RGBA")
    reference = Image.open(io.BytesIO(data)).convert("RGBA")
    assert ImageChops.difference(made.getchannel("A"), reference.getchannel("A")).getbbox() is None
    assert made.getpixel((70, 5)) == reference.getpixel((70, 5))


# --- PNG palettes


def test_a_png_of_few_colours_is_shrunk_without_loss() -> None:
    image = hiding().resize((300, 300))
    image.paste((10, 20, 30, 128), (100, 100, 150, 300))
    result = shrink(encoded(image, "PNG", compress_level=0), max_pixels=LIMIT)
    made = opened(result).convert("RGBA")
    over = [Image.alpha_composite(Image.new("RGBA", one.size, "white"), one) for one in (image, made)]
    assert ImageChops.difference(*over).getbbox() is None


@pytest.mark.slow
def test_small_rare_colour_is_kept() -> None:
    """What a palette chosen by the average would lose."""
    image = photo(400, 400)
    image.paste((255, 0, 0), (200, 200, 216, 216))
    made = opened(shrink(encoded(image, "PNG"), max_pixels=LIMIT)).convert("RGB")
    red, green, blue = ImageStat.Stat(made.crop((202, 202, 214, 214))).mean
    assert red > 225
    assert max(green, blue) < 30


def test_quality_100_changes_no_pixel_of_a_png() -> None:
    made = opened(shrink(encoded(photo(), "PNG", compress_level=0), max_pixels=LIMIT, quality=100))
    assert ImageChops.difference(made, photo()).getbbox() is None


# --- animations and pages


def moving(alpha: bool, count: int = 6) -> list[Image.Image]:
    frames = []
    for turn in range(count):
        frame = Image.new("RGBA", (60, 40), CLEAR if alpha else (*BLUE, 255))
        frame.paste((*RED, 255), (8 * turn, 10, 8 * turn + 10, 30))
        frames.append(frame if alpha else frame.convert("RGB"))
    return frames


def shown(data: bytes) -> tuple[list[Image.Image], list[float]]:
    image = Image.open(io.BytesIO(data))
    frames, durations = [], []
    for position in range(getattr(image, "n_frames", 1)):
        image.seek(position)
        image.load()
        durations.append(image.info.get("duration", 0))
        frames.append(on_white(image))
    return frames, durations


def on_white(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")


@pytest.mark.parametrize("target", ["gif", "webp", "png", "avif"])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("source", ["gif", "webp", "png"])
def test_an_animation_plays_the_same(source: str, alpha: bool, target: str) -> None:
    frames, durations = moving(alpha), [100, 200, 50, 100, 300, 80]
    options: dict[str, Any] = {"disposal": 2} if source == "gif" else {"lossless": True} if source == "webp" else {}
    data = encoded(frames[0], source, save_all=True, append_images=frames[1:], duration=durations, loop=2, **options)
    if source == "webp" and alpha:
        data = with_webp_alpha(data)  # or Pillow, which reads the result here, shows black
    result = shrink(data, max_pixels=LIMIT, target_format=target)
    made, times = shown(result.data)
    assert times == pytest.approx(durations, abs=1)
    for before, after in zip(frames, made, strict=True):
        assert mean_error(on_white(before), after) < 5
    if not (source != "gif" and target == "gif") and target != "avif":
        # GIF counts repetitions, the others count how often it plays.
        plays = 3 if source == "gif" else 2
        assert Image.open(io.BytesIO(result.data)).info["loop"] == (plays - 1 if target == "gif" else plays)


def test_a_gif_that_plays_once_goes_on_doing_so() -> None:
    frames = moving(alpha=False)
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100)
    assert "loop" not in opened(shrink(data, max_pixels=LIMIT)).info
    assert opened(shrink(data, max_pixels=LIMIT, target_format="webp")).info["loop"] == 1


def test_apng_poster_stays_out_of_animation() -> None:
    poster, *frames = [photo(60, 40), *moving(alpha=False)]
    data = encoded(poster, "PNG", save_all=True, append_images=frames, default_image=True, duration=100)
    image = Image.open(io.BytesIO(shrink(data, max_pixels=LIMIT).data))
    assert image.default_image  # type: ignore[attr-defined]  # of Pillow's plugin
    assert image.n_frames == len(frames) + 1  # type: ignore[attr-defined]  # of Pillow's plugin


def test_tiff_keeps_pages_but_not_thumbnails() -> None:
    pages = [photo(), photo(80, 60).convert("L"), photo(100, 100).convert("1")]
    thumbnail = photo(40, 30)
    thumbnail.encoderinfo = {"tiffinfo": {254: 1}}  # NewSubfileType: a smaller version of another page
    data = encoded(pages[0], "TIFF", save_all=True, append_images=[pages[1], thumbnail, pages[2]])
    assert Image.open(io.BytesIO(data)).n_frames == 4  # type: ignore[attr-defined]  # of Pillow's plugin
    image = Image.open(io.BytesIO(shrink(data, max_pixels=LIMIT).data))
    sizes = []
    for position in range(image.n_frames):  # type: ignore[attr-defined]  # of Pillow's plugin
        image.seek(position)
        image.load()
        sizes.append(image.size)
    assert sizes == [(160, 120), (80, 60), (100, 100)]


# --- damage

SAMPLES: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: encoded(photo(), "JPEG", quality=90),
    "progressive": lambda: encoded(photo(), "JPEG", quality=90, progressive=True, exif=Image.Exif()),
    "png": lambda: encoded(photo(), "PNG"),
    "palette": lambda: encoded(photo().quantize(16), "PNG"),
    "sixteen": lambda: encoded(Image.new("I;16", (60, 40), 999), "PNG"),
    "webp": lambda: encoded(photo(), "WEBP"),
    "lossless": lambda: encoded(photo(), "WEBP", lossless=True),
    "gif": lambda: encoded(moving(False)[0], "GIF", save_all=True, append_images=moving(False)[1:], duration=50),
    "apng": lambda: encoded(moving(True)[0], "PNG", save_all=True, append_images=moving(True)[1:], duration=50),
    "tiff": lambda: encoded(photo(), "TIFF", compression="tiff_lzw"),
    "fax": lambda: encoded(photo().convert("1"), "TIFF", compression="group4"),
    "avif": lambda: encoded(photo(64, 48), "AVIF"),
    "bmp": lambda: encoded(photo(), "BMP"),
    "ppm": lambda: encoded(photo(), "PPM"),
    "profile": lambda: encoded(
        photo(), "JPEG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    ),
}


@pytest.mark.parametrize("name", [name for name in SAMPLES if name not in ("sixteen", "gif", "apng")])
def test_half_a_file_is_a_failure(name: str) -> None:
    data = SAMPLES[name]()
    assert rejection(data[: len(data) // 2]) in (Reason.TRUNCATED_IMAGE, Reason.BROKEN_IMAGE)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLES)
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(cut=st.floats(0, 1), flips=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), max_size=8))
def test_a_damaged_file_gives_a_result_or_a_reason(name: str, cut: float, flips: list[tuple[float, int]]) -> None:
    data = bytearray(SAMPLES[name]())
    for place, mask in flips:
        data[min(len(data) - 1, int(place * len(data)))] ^= mask
    damaged = bytes(data[: len(data) - int(cut * len(data))] if cut < 0.5 else data)
    try:
        result = shrink(damaged, max_pixels=1_000_000)
    except ImageRejected as rejected:
        assert rejected.detail  # noqa: PT017 - either outcome is right
    else:
        assert 0 < result.width * result.height <= 1_000_000


# --- photos, as cameras and editors write them

DEMO = Path(__file__).parents[3] / "infra" / "demo"


def astronaut(mode: str = "RGB") -> Image.Image:
    return Image.open(DEMO / "astronaut.png").convert("RGB").resize((256, 200)).convert(mode)


def cut_out() -> Image.Image:
    """With an edge that fades into nothing."""
    image = astronaut()
    image.putalpha(Image.radial_gradient("L").resize(image.size).point(lambda value: 255 - value))
    return image


def wide() -> Image.Image:
    return Image.frombytes("I;16", (256, 200), b"".join(bytes((0, value)) for value in astronaut("L").tobytes()))


def film(image: Image.Image, pillow_format: str, **options: Any) -> bytes:
    turned = [image.rotate(10 * turn) for turn in range(4)]
    return encoded(turned[0], pillow_format, save_all=True, append_images=turned[1:], duration=80, loop=0, **options)


def turned_jpeg(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return encoded(astronaut(), "JPEG", quality=95, exif=exif, icc_profile=srgb)


PHOTOS: dict[str, Callable[[], bytes]] = {
    **{path.name: path.read_bytes for path in sorted(DEMO.iterdir()) if path.suffix in (".png", ".jpg")},
    **{f"turned-{orientation}.jpg": partial(turned_jpeg, orientation) for orientation in range(2, 9)},
    "progressive.jpg": lambda: encoded(astronaut(), "JPEG", quality=98, progressive=True, subsampling="4:4:4"),
    "grey.jpg": lambda: encoded(astronaut("L"), "JPEG", quality=95),
    "cmyk.jpg": lambda: encoded(astronaut("CMYK"), "JPEG", quality=95),
    "two-views.mpo": lambda: encoded(astronaut(), "MPO", quality=95, save_all=True, append_images=[astronaut()]),
    "palette.png": lambda: encoded(astronaut().quantize(200), "PNG"),
    "cut-out.png": lambda: encoded(cut_out(), "PNG"),
    "grey-cut-out.png": lambda: encoded(cut_out().convert("LA"), "PNG"),
    "sixteen-bit.png": lambda: encoded(wide(), "PNG"),
    "film.png": lambda: film(astronaut(), "PNG"),
    "film.gif": lambda: film(astronaut().quantize(64), "GIF"),
    "photo.webp": lambda: encoded(astronaut(), "WEBP", quality=95),
    "cut-out.webp": lambda: encoded(cut_out(), "WEBP", lossless=True),
    "film.webp": lambda: film(astronaut(), "WEBP", quality=95),
    "photo.avif": lambda: encoded(astronaut(), "AVIF", quality=95),
    "cut-out.avif": lambda: encoded(cut_out(), "AVIF", quality=95),
    "photo.tif": lambda: encoded(astronaut(), "TIFF", compression="tiff_lzw"),
    "sixteen-bit.tif": lambda: encoded(wide(), "TIFF"),
    "fax.tif": lambda: encoded(astronaut("1"), "TIFF", compression="group4"),
}


def reference_of(image: Image.Image) -> Image.Image:
    """The first frame as a colour-managed viewer shows it, by Pillow's own means, over white."""
    profile = image.info.get("icc_profile")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if profile and image.mode in ("RGB", "CMYK"):
        embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(
            image, embedded, ImageCms.createProfile("sRGB"), ImageCms.Intent.RELATIVE_COLORIMETRIC, "RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )  # fmt: skip
        assert converted is not None
        image = converted
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


@pytest.mark.slow
@pytest.mark.parametrize("name", PHOTOS)
def test_photo_comes_back_smaller_and_in_its_colours(name: str) -> None:
    data = PHOTOS[name]()
    result = shrink(data, max_pixels=LIMIT)
    source = Image.open(io.BytesIO(data))
    reference = reference_of(source)
    made = reference_of(opened(result))
    assert result.format == {"MPO": "jpeg"}.get(source.format or "", (source.format or "").lower())
    assert len(result.data) < len(data) or (result.kept_original and result.data == data)
    assert (result.width, result.height) == made.size == reference.size
    # Of 8 x 8 blocks, because quality 50 is allowed to lose detail, but not to shift colours.
    assert mean_error(made.reduce(8), reference.reduce(8)) < 2.5
    if result.format != "jpeg":
        assert sum(shown(result.data)[1]) == sum(shown(data)[1])


# --- what is told by name


IMAGES = Path(__file__).parents[2] / "images"
PROLOGS = ["", "\ufeff", "\n\n  ", "<!-- made by -->\n", "<?xml version='1.0'?>\n<!-- a -->",
           "<!DOCTYPE svg [<!ENTITY a 'b>c'>]>\n", "<!--" + "x" * 20_000 + "-->",
           "<?xml-stylesheet href='a'?><!DOCTYPE svg PUBLIC '-//W3C' 'http://x'>"]  # fmt: skip


@pytest.mark.parametrize("prolog", PROLOGS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_svg_is_recognised_despite_any_prolog(prolog: str, encoding: str) -> None:
    for root in ("<svg xmlns='http://www.w3.org/2000/svg'/>", "<svg:svg xmlns:svg='http://www.w3.org/2000/svg'/>"):
        data = (prolog + root).encode(encoding)
        assert rejection(data) == rejection(gzip.compress(data)) == Reason.UNSUPPORTED_FORMAT


@pytest.mark.parametrize(
    "data",
    [b"<!doctype html><title>404</title>", b"\xef\xbb\xbf\r\n<html lang=en>",
     b"<!-- a --><!DOCTYPE HTML PUBLIC 'x'>\n<p>",
     b"<?xml version='1.0'?><!DOCTYPE html SYSTEM 'x'><html xmlns='x'>", b"<head><svg/>",
     b"<script>location='/'</script>"],
)  # fmt: skip
def test_web_page_has_its_own_reason(data: bytes) -> None:
    assert rejection(data) == Reason.WEB_PAGE


@pytest.mark.parametrize("file", ["cur.cur", "svg-bom.svg", "svg-comment.svg", "svg-doctype.svg", "svg-newline.svg",
                                  "tiff-float.tif", "tiff-float-grey.tif"])  # fmt: skip
def test_unsupported_kinds_get_stable_detail(file: str) -> None:
    details = set()
    for _ in range(2):
        with pytest.raises(ImageRejected) as caught:
            shrink((IMAGES / file).read_bytes(), max_pixels=LIMIT)
        assert caught.value.reason == Reason.UNSUPPORTED_FORMAT
        details.add(caught.value.detail)
    assert len(details) == 1
    assert " at 0x" not in details.pop()


def test_heic_of_a_phone_becomes_an_upright_jpeg() -> None:
    result = shrink((IMAGES / "phone.heic").read_bytes(), max_pixels=LIMIT)
    image = opened(result)
    assert (result.format, image.mode, image.size) == ("jpeg", "RGB", (64, 96))
    assert mean_error(image.crop((0, 0, 64, 30)), Image.new("RGB", (64, 30), RED)) < 8
    assert mean_error(image.crop((0, 40, 64, 96)), Image.new("RGB", (64, 56), BLUE)) < 8


def test_heif_keeps_its_alpha_in_png() -> None:
    result = shrink((IMAGES / "alpha.heic").read_bytes(), max_pixels=LIMIT)
    assert result.format == "png"
    assert opened(result).convert("RGBA").getchannel("A").getextrema() == pytest.approx((0, 255), abs=4)


@pytest.mark.parametrize("length", [100, 500, -20])
def test_damaged_heic_gives_a_reason(length: int) -> None:
    data = (IMAGES / "phone.heic").read_bytes()
    assert rejection(data[:length]) in (Reason.TRUNCATED_IMAGE, Reason.BROKEN_IMAGE)
    assert rejection(data, max_pixels=6_143) == Reason.TOO_MANY_PIXELS


# --- files that end too early


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": "4:4:4"}])
@pytest.mark.parametrize("cut", [20, 0.01])
def test_jpeg_cut_at_its_end_is_made(options: dict[str, Any], cut: float) -> None:
    data = encoded(photo(640, 480), "JPEG", quality=90, **options)
    result = shrink(data[: -round(cut if cut > 1 else cut * len(data))], max_pixels=LIMIT)
    assert result.truncated
    assert mean_error(opened(result).crop((0, 0, 640, 400)), photo(640, 480).crop((0, 0, 640, 400))) < 6


def test_missing_rows_are_white_or_clear() -> None:
    data = encoded(Image.new("RGB", (320, 320), RED), "PNG", compress_level=0)
    cut = data[: int(len(data) * 0.95)]
    assert opened(shrink(cut, max_pixels=LIMIT)).convert("RGBA").getpixel((5, 319)) == CLEAR
    assert opened(shrink(cut, max_pixels=LIMIT, target_format="jpeg")).getpixel((5, 319)) == (255, 255, 255)


# --- large images


@pytest.mark.slow
def test_large_cutout_is_made_in_time() -> None:
    """24 megapixels with noise and a soft edge, as a camera has them; a decoder may use 20 s of the processor."""
    size = (6_000, 4_000)
    noise = Image.frombytes("L", size, random.Random(1).randbytes(size[0] * size[1]))
    bands = [Image.blend(ramp.resize(size), noise, 0.03) for ramp in (Image.linear_gradient("L"),) * 3]
    shape = ImageChops.invert(Image.radial_gradient("L")).point([max(0, min(255, 4 * v - 300)) for v in range(256)])
    image = Image.merge("RGBA", (*bands, shape.resize(size)))
    data = encoded(image, "PNG", compress_level=1)
    started = time.process_time()
    result = shrink(data, max_pixels=LIMIT)
    assert time.process_time() - started < 15
    assert (result.width, result.height) == size


# --- what quality means


def test_photo_with_soft_edge_gets_a_palette() -> None:
    image = Image.open(DEMO / "astronaut.png").convert("RGB").resize((400, 400))
    shape = Image.new("L", image.size)
    ImageDraw.Draw(shape).ellipse((60, 60, 340, 340), fill=255)
    image.putalpha(shape.filter(ImageFilter.GaussianBlur(4)))
    result = shrink(encoded(image, "PNG"), max_pixels=LIMIT)
    assert opened(result).mode == "P"
    assert palette.faithful(image, opened(result), 50)


def test_libvips_out_of_memory_is_no_broken_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> bytes:
        raise pyvips.Error("unable to call pngsave_buffer", "pngsave: out of memory")

    monkeypatch.setattr(pyvips.Image, "new_from_memory", fail)
    assert rejection(encoded(photo(), "PNG")) == Reason.DECODE_MEMORY


def test_glow_has_no_rings() -> None:
    before = Image.open(IMAGES / "glow.png").convert("RGBA")
    after = opened(shrink((IMAGES / "glow.png").read_bytes(), max_pixels=LIMIT)).convert("RGBA")
    assert len(after.getchannel("A").getcolors() or ()) > 40
    assert after.getpixel((150, 150))[3] == before.getpixel((150, 150))[3] == 255  # type: ignore[index]
    for colour in ("black", "white"):
        over = [Image.alpha_composite(Image.new("RGBA", one.size, colour), one) for one in (before, after)]
        assert max(ImageChops.difference(*over).convert("RGB").tobytes()) <= 5


@pytest.mark.parametrize("target", ["jpeg", "webp", "avif"])
def test_quality_100_keeps_red_text(target: str) -> None:
    data = (IMAGES / "red-text-444.jpg").read_bytes()
    after = opened(shrink(data, max_pixels=LIMIT, quality=100, target_format=target)).convert("RGB")
    assert max(ImageChops.difference(photo_of(data), after).tobytes()) < 40


@pytest.mark.parametrize(("quality", "halved"), [(50, 2), (89, 2), (90, 1), (100, 1)])
def test_colours_are_stored_in_full_from_90(quality: int, halved: int) -> None:
    image = opened(shrink(encoded(photo(), "PNG"), max_pixels=LIMIT, quality=quality, target_format="jpeg"))
    assert image.layer[0][1:3] == (halved, halved)  # type: ignore[attr-defined]  # of Pillow's plugin


def test_pages_that_were_not_made_are_counted() -> None:
    data = (IMAGES / "pages-same.tif").read_bytes()
    assert shrink(data, max_pixels=LIMIT, target_format="png").pages == 2
    assert shrink(data, max_pixels=LIMIT).pages is None
