"""Images that are made, friendly and hostile ones."""

import io
import struct
import zlib

from PIL import Image

# White point and primaries of Adobe RGB, as a cHRM chunk has them: in 1/100,000.
ADOBE = (31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)


def jpeg(width: int = 64, height: int = 48) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def endless_jpeg(side: int = 5_000, scans: int = 1_500) -> bytes:
    """A valid progressive JPEG whose last scan stands there ``scans`` times; each passes over every block."""
    buffer = io.BytesIO()
    Image.new("L", (side, side), 128).save(buffer, "JPEG", quality=50, progressive=True)
    data = buffer.getvalue()
    last_scan = data.rindex(b"\xff\xda")
    return data[:-2] + data[last_scan:-2] * scans + data[-2:]


def png_header(width: int, height: int, depth: int = 8) -> bytes:
    """A PNG that promises ``width`` x ``height`` pixels and has none."""
    ihdr = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def cicp(*codes: int) -> bytes:
    return chunk(b"cICP", bytes(codes))


def gama(value: int) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", value))


def chrm(*values: int) -> bytes:
    return chunk(b"cHRM", struct.pack(">8I", *values))
