"""``python -m tests.bench.formats``: what becomes of every real file of the formats that shops have.

The judge is libvips, which shares no code with Pillow's decoders but the codec libraries: it shows input and output
as a viewer does (upright, in sRGB, over white), and the colour error is the mean difference of the two, of 255.
"""

import os
import time
from pathlib import Path

import pyvips

from streams.compress.codec.outcome import ImageRejected
from streams.compress.codec.shrink import shrink

FORMATS = Path(os.environ.get("TEST_SHARED", Path(__file__).parents[3] / "shared")) / "formats"
MAX_PIXELS = 100_000_000


def as_shown(data: bytes) -> pyvips.Image:
    """The first frame as a colour-managed viewer shows it on a white page: three bands of eight bits."""
    image = pyvips.Image.new_from_buffer(data, "").autorot()
    if image.get_typeof("icc-profile-data"):
        image = image.icc_transform("srgb", intent="relative", black_point_compensation=True, embedded=True)
    image = image.colourspace("srgb")  # of eight bits, too
    if image.hasalpha():
        image = image.flatten(background=255)
    if image.bands == 1:
        image = image.bandjoin([image, image])
    return image.extract_band(0, n=3).cast("uchar")


def colour_error(before: pyvips.Image, after: pyvips.Image) -> float:
    return float((before.cast("int") - after.cast("int")).abs().avg())


def orientation(data: bytes) -> int:
    image = pyvips.Image.new_from_buffer(data, "")
    return int(image.get("orientation")) if image.get_typeof("orientation") else 1


def is_bare_cmyk(data: bytes) -> bool:
    image = pyvips.Image.new_from_buffer(data, "")
    return bool(image.interpretation == "cmyk") and not image.get_typeof("icc-profile-data")


def row(data: bytes) -> str:
    started = time.perf_counter()
    try:
        result = shrink(data, max_pixels=MAX_PIXELS)
    except ImageRejected as rejected:
        return f"{'failed':10}{rejected.reason:22}{len(data):10}"
    milliseconds = (time.perf_counter() - started) * 1e3
    told = "original" if result.kept_original else "smaller"
    line = f"{told:10}{result.format:22}{len(data):10}{len(result.data):10}{len(result.data) / len(data):6.0%}"
    line += f"{milliseconds:8.0f}"
    try:
        before, after = as_shown(data), as_shown(result.data)
    except pyvips.Error as error:
        return f"{line}   libvips can't say: {str(error).splitlines()[0][:50]}"
    if (before.width, before.height) != (after.width, after.height):
        return f"{line}   {orientation(data)}, WRONG: {before.width}x{before.height} as {after.width}x{after.height}"
    note = "  no CMYK profile: browsers' formula here, a press in libvips" if is_bare_cmyk(data) else ""
    return f"{line}   {f'{orientation(data)}, upright':12}{colour_error(before, after):6.2f}{note}"


def main() -> None:
    files = [file for file in sorted(FORMATS.iterdir()) if file.suffix != ".csv"] if FORMATS.is_dir() else []
    if not files:
        raise SystemExit(f"no files at {FORMATS} (set TEST_SHARED)")
    print(
        f"{'file':40}{'result':10}{'format or reason':22}{'bytes in':>10}{'out':>10}{'':>6}{'ms':>8}"
        f"   {'orientation':12}{'colour error':>6}"
    )
    for file in files:
        print(f"{file.name[:38]:40}{row(file.read_bytes())}", flush=True)


if __name__ == "__main__":
    main()
