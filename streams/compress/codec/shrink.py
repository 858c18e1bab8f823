"""The codec: the bytes of an image in, the bytes of a smaller image that looks the same out.

Pure, apart from Pillow's process-wide guards, which it narrows while it runs: one image at a time in a
process, and in production in a process of its own (``decoders``), because a hostile file can make a
decoder hang or crash.

The result has:

* the format of the input (MPO becomes JPEG, its first image; BMP, PPM and HEIF become JPEG, or PNG with alpha);
* inside ``max_width`` and ``max_height``, never enlarged;
* as displayed: upright, in sRGB, eight bits a sample, with its alpha, its frames, and the pages of a TIFF in a TIFF;
* no metadata;
* never more bytes than the input. If shrinking does not help, the input is handed back byte for byte, and
  so with its metadata: a viewer turns it upright itself. Only where another format had to be made (BMP,
  PPM, HEIF, or ``target_format``) or the image was made smaller in pixels the result may have more bytes.
"""

import re
import struct
import time
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from PIL import AvifImagePlugin, Image, ImageFile

from streams.compress.codec import palette
from streams.compress.codec.animation import (
    Frames,
    read_frames,
    write_apng,
    write_avif_sequence,
    write_gif,
    write_tiff,
    write_webp_animation,
)
from streams.compress.codec.auto_quality import smallest_alike
from streams.compress.codec.colour import is_grey, over_white
from streams.compress.codec.encoders import saved, webp_options
from streams.compress.codec.outcome import OUTPUT_FORMATS, ImageRejected, Reason, Shrunk
from streams.compress.codec.quantiser import quantised

__all__ = ["OUTPUT_FORMATS", "ImageRejected", "Reason", "Shrunk", "shrink"]

# Formats with more than one frame; of all others, only the first image is used.
MANY_FRAMES = ("png", "webp", "gif", "tiff", "avif")
# Formats of still images whose quality ``auto`` chooses. That of all else is AUTO_ELSEWHERE: palettes have a bound of
# their own (``palette``).
AUTO_FORMATS = ("jpeg", "webp", "avif")
AUTO_ELSEWHERE = 50
# Longest side: JPEG_MAX_DIMENSION of libjpeg, WEBP_MAX_DIMENSION of libwebp, GIF's 16 bits, and the
# imageDimensionLimit of libavif.
MAX_SIDE = {"jpeg": 65_500, "webp": 16_383, "gif": 65_535, "avif": 32_768}
# libaom's speed, 0 to 10: 6 is 5 times as slow for 10% fewer bytes.
AVIF_SPEED = 8
FULL_CHROMA_QUALITY = 90
BEST_LEVEL = 9
OPTIMISED_SAMPLES, LEVEL_6_SAMPLES = 10_000_000, 32_000_000

# Everything that decoders raised on damaged files (`fuzzing` in the tests), by the nearest base classes.
DECODER_ERRORS = (ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, OSError, RuntimeError,
                  SyntaxError, TypeError, ValueError, struct.error, zlib.error)  # fmt: skip
# Pillow has no error class for these.
TRUNCATED_WORDS = ("truncat", "end of file", "not enough", "no more images", "unrecognized data stream")
# The last is libaom's, for a picture too large for its frame buffers.
MEMORY_WORDS = ("out of memory", "memory allocation", "encoding of color planes failed")

# Image formats that are recognised, but not supported: they are rare on the web, and their decoders are little
# tested, or start other programs.
HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))
KNOWN_SIGNATURES = {
    b"8BPS": "Photoshop", b"%!PS": "PostScript", b"\xc5\xd0\xd3\xc6": "EPS", b"%PDF": "PDF",
    b"\x00\x00\x01\x00": "ICO", b"\x00\x00\x02\x00": "CUR",
    b"\xff\x4f\xff\x51": "JPEG 2000", b"\x00\x00\x00\x0cjP": "JPEG 2000",
    b"\xff\x0a": "JPEG XL", b"\x00\x00\x00\x0cJXL": "JPEG XL", b"II\xbc": "JPEG XR", b"DDS ": "DDS", b"qoif": "QOI",
    b"\xd0\xcf\x11\xe0": "FlashPix or another OLE file", b"icns": "ICNS", b"gimp xcf": "GIMP", b"BPG\xfb": "BPG",
    b"SIMPLE  =": "FITS",
}  # fmt: skip

# Before the first element of a document: white space, <?xml …?>, comments, and a document type with its declarations.
PROLOG = re.compile(
    r"(?:\s|<\?.*?\?>|<!--.*?-->|(?P<html><!doctype\s+html\b[^>]*>)|<!doctype[^\[>]*(?:\[.*?\]\s*)?>)*"
    r"(?:<(?:[\w-]+:)?(?P<root>[a-z]+))?",
    re.IGNORECASE | re.DOTALL,
)
PROLOG_BYTES = 65_536
WEB_PAGE_DETAIL = "the address answers with a web page; share links of Google Drive and Dropbox are pages"


def shrink(
    data: bytes,
    *,
    quality: int | Literal["auto"] = 50,
    max_pixels: int,
    target_format: str | None = None,
    max_width: int | None = None,
    max_height: int | None = None,
) -> Shrunk:
    """Shrink one image.

    ``quality`` is 1 to 100, or ``auto``: by eye (``auto_quality``); ``max_pixels`` bounds the pixels of all frames
    together, sixteen-bit ones counted twice; ``target_format`` is one of OUTPUT_FORMATS, by default that of the input;
    ``max_width`` and ``max_height`` (pixels, as displayed) bound the result, by default not at all.

    Raises ImageRejected, and nothing else, for whatever is wrong with ``data``.
    """
    if target_format is not None and target_format not in OUTPUT_FORMATS:
        raise ValueError(f"target format {target_format!r} is none of {', '.join(OUTPUT_FORMATS)}")
    source = sniff(data)
    started = time.perf_counter()
    with _pillow_limits(max_pixels):
        with _failing_as(Reason.BROKEN_IMAGE):
            own_format = _output_format(source)
            to = target_format or own_format
            only_first = to not in MANY_FRAMES or (source == "TIFF" and to != "tiff")
            frames = read_frames(source, data, max_pixels, only_first=only_first)
            whole = frames
            frames = frames.fitting(max_width, max_height)
        made_format = target_format or own_format or ("jpeg" if frames.first.mode in ("1", "L", "RGB") else "png")
        width, height = frames.first.size
        if max(width, height) > MAX_SIDE.get(made_format, max(width, height)):
            raise ImageRejected(Reason.CANNOT_ENCODE, f"{width} x {height} pixels are too long for {made_format}")
        decoded = time.perf_counter()
        with _failing_as(Reason.CANNOT_ENCODE):
            if quality != "auto":
                result = _encode(frames, made_format, quality, goal=len(data))
            elif made_format in AUTO_FORMATS and (made_format == "jpeg" or not frames.animated):
                result, quality = smallest_alike(
                    frames.first, lambda image, tried: _encode(Frames([image]), made_format, tried, goal=len(data))
                )
            else:
                quality = AUTO_ELSEWHERE
                result = _encode(frames, made_format, quality, goal=len(data))
    is_same_picture = frames is whole and not frames.truncated
    kept = made_format == own_format and len(result) >= len(data) and is_same_picture
    return Shrunk(
        data if kept else result,
        made_format,
        width,
        height,
        kept_original=kept,
        quality=None if kept else quality,
        truncated=frames.truncated,
        pages=frames.pages if frames.pages > len(frames.images) else None,
        decode_seconds=decoded - started,
        encode_seconds=time.perf_counter() - decoded,
    )


def sniff(data: bytes) -> str:
    """The name of the one Pillow decoder that ``data`` may be given to, by its first bytes alone.

    Raises ImageRejected: ``unsupported_format`` for an image of another format, else ``not_an_image``.
    """
    head = data[:32]
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if head.startswith(b"BM"):
        return "BMP"
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace():
        return "PPM"
    if head[4:8] == b"ftyp":
        if {b"avif", b"avis"} & _brands(data):
            return "AVIF"
        if HEIF_BRANDS & _brands(data):
            return "HEIF"
        raise ImageRejected(Reason.UNSUPPORTED_FORMAT, f"ISO media of brand {head[8:12]!r}, such as a video")
    for signature, name in KNOWN_SIGNATURES.items():
        if head.startswith(signature):
            raise ImageRejected(Reason.UNSUPPORTED_FORMAT, f"{name} images are not supported")
    match _root_element(data):
        case "svg":
            raise ImageRejected(Reason.UNSUPPORTED_FORMAT, "SVG images are not supported")
        case "html" | "head" | "body" | "title" | "script" | "meta":
            raise ImageRejected(Reason.WEB_PAGE, WEB_PAGE_DETAIL)
    # The bytes are not named: they may be of a page that only this machine can reach.
    raise ImageRejected(Reason.NOT_AN_IMAGE, "its first bytes are those of no image format" if data else "no bytes")


def _root_element(data: bytes) -> str:
    """The name of the first element of an XML or HTML document, gzipped or not, whatever is before it; or nothing."""
    if data.startswith(b"\x1f\x8b"):
        try:
            data = zlib.decompressobj(wbits=31).decompress(data, PROLOG_BYTES)
        except zlib.error:
            return ""
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "latin-1"
    text = data[:PROLOG_BYTES].removeprefix(b"\xef\xbb\xbf").decode(encoding, errors="replace").lstrip("\ufeff")
    found = PROLOG.match(text)
    assert found, "all of it is optional"
    return "html" if found["html"] else (found["root"] or "").lower()


def _brands(data: bytes) -> set[bytes]:
    """Major and compatible brands of an ISO base media file (ISO/IEC 14496-12, 4.3)."""
    size = min(int.from_bytes(data[:4], "big"), 256)
    return {data[8:12], *(data[at : at + 4] for at in range(16, size, 4))}


def _output_format(source: str) -> str | None:
    """The format of the result by that of the input; None where it depends on the picture."""
    return None if source in ("BMP", "PPM", "HEIF") else source.lower()


def _encode(frames: Frames, made_format: str, quality: int, goal: int) -> bytes:
    match made_format:
        case "jpeg":
            return _encode_jpeg(frames.first, quality)
        case "png":
            return write_apng(frames, quality) if frames.animated else _encode_png(frames.first, quality, goal)
        case "webp":
            if frames.animated:
                return write_webp_animation(frames, quality)
            return saved(frames.first, "WEBP", **webp_options(quality))
        case "avif":
            # One thread: there is a decoder process for each core.
            options = {"quality": quality, "speed": AVIF_SPEED, "max_threads": 1, "subsampling": _subsampling(quality)}
            if frames.animated:
                return write_avif_sequence(frames, **options)
            return saved(frames.first, "AVIF", **options)
        case "gif":
            return write_gif(frames, quality)
        case _:
            return write_tiff(frames)


def _subsampling(quality: int) -> str:
    """Chroma subsampling: colours at half the resolution below FULL_CHROMA_QUALITY, as is usual."""
    return "4:4:4" if quality >= FULL_CHROMA_QUALITY else "4:2:0"


def _encode_jpeg(image: Image.Image, quality: int) -> bytes:
    image = over_white(image)
    if image.mode == "RGB":
        return saved(image, "JPEG", quality=quality, optimize=True, subsampling=_subsampling(quality))
    return saved(image.convert("L"), "JPEG", quality=quality, optimize=True)


def _encode_png(image: Image.Image, quality: int, goal: int) -> bytes:
    """A palette where it is exact or can't be seen, full colour where that does not get below ``goal`` bytes."""
    if image.mode == "1":
        return saved(image, "PNG", optimize=True)
    if image.mode in ("RGB", "RGBA") and is_grey(image):
        image = image.convert("LA" if image.mode == "RGBA" else "L")
    candidates: list[bytes] = []
    if same := palette.exact(image):
        indexed, alpha = same
        candidates.append(_deflated(indexed, **({"transparency": alpha} if alpha else {})))
    if image.mode == "L":
        if (fewer := palette.fewer_greys(image, quality)) is not None:
            candidates.append(_deflated(fewer))
    elif not candidates:
        image = image.convert("RGBA") if image.mode == "LA" else image
        if (made := quantised(image, quality, _compression(image.width * image.height))) is not None:
            candidates.append(made)
        elif image.mode == "RGBA" and quality < 100:
            image = palette.fewer_levels(image, quality)
    if not candidates or min(map(len, candidates)) >= goal:
        candidates.append(_deflated(image))
    return min(candidates, key=len)


def _deflated(image: Image.Image, **options: Any) -> bytes:
    level = _compression(image.width * image.height * len(image.getbands()))
    options |= {"optimize": True} if level == BEST_LEVEL else {"compress_level": level}
    return saved(image, "PNG", **options)


def _compression(samples: int) -> int:
    """The zlib level that an image has the time for: 9 took 5 times as long as 6 on large noisy ones, for a few percent
    more or less; 3 takes a third of 6."""
    return BEST_LEVEL if samples <= OPTIMISED_SAMPLES else 6 if samples <= LEVEL_6_SAMPLES else 3


@contextmanager
def _pillow_limits(max_pixels: int) -> Iterator[None]:
    """Set Pillow's own limits for this image, and restore them afterwards.

    `read_frames` counts the pixels that headers declare; Pillow's limit covers the rest, such as a frame of a GIF
    that is larger than the GIF. Other warnings of Pillow don't reject an image.
    """
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, AvifImagePlugin.DEFAULT_MAX_THREADS
    Image.MAX_IMAGE_PIXELS = max_pixels
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, AvifImagePlugin.DEFAULT_MAX_THREADS = before


@contextmanager
def _failing_as(reason: Reason) -> Iterator[None]:
    """Turns whatever Pillow raises into ImageRejected."""
    try:
        yield
    except ImageRejected:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageRejected(Reason.TOO_MANY_PIXELS, str(error)) from error
    except MemoryError as error:
        raise ImageRejected(Reason.DECODE_MEMORY, "needs more memory than a decoder may use") from error
    except DECODER_ERRORS as error:
        text = f"{type(error).__name__}: {error}"
        lower = text.lower()
        if any(words in lower for words in MEMORY_WORDS):
            raise ImageRejected(Reason.DECODE_MEMORY, text) from error
        if reason is Reason.BROKEN_IMAGE and (isinstance(error, EOFError) or any(w in lower for w in TRUNCATED_WORDS)):
            raise ImageRejected(Reason.TRUNCATED_IMAGE, text) from error
        raise ImageRejected(reason, text[:500]) from error
