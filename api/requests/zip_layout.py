"""Layout of a ZIP archive that is written in one pass: uncompressed entries with data descriptors, Zip64 where needed.

https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT. Python's `zipfile` keeps every entry in memory until the
end, about 1 GB for a million images; here the caller keeps the directory entries, wherever it likes.
"""

import re
import struct
import unicodedata
from datetime import UTC, datetime

ENTRY_LIMIT = 0xFFFFFFFF
"""Entries must be smaller than this number of bytes (4 GiB); the archive may be larger."""
MAX_ENTRIES_32 = 0xFFFF
MAX_STEM_BYTES = 100  # of a product name; file systems take 255 bytes, and Windows paths of 260 characters

_VERSION, _VERSION_64 = 20, 45
_MADE_BY_UNIX = 3 << 8 | _VERSION_64
_FLAGS = 1 << 3 | 1 << 11  # a data descriptor follows; the name is UTF-8
_STORED = 0
_REGULAR_FILE = 0o100644 << 16
_RESERVED = re.compile(r'[<>:"/\\|?*]')


def entry_name(number: int, total: int, product: str, extension: str) -> str:
    """File name of a request's image: its number in CSV order, and the product name as far as every system allows.

    The number makes it unique, sorts it and keeps it from being a device name of Windows.
    """
    words = " ".join(unicodedata.normalize("NFC", product).split())
    stem = "".join("_" if _RESERVED.match(char) or unicodedata.category(char)[0] == "C" else char for char in words)
    stem = stem.encode()[:MAX_STEM_BYTES].decode(errors="ignore").rstrip(". ")
    return f"{number:0{len(str(total))}} {stem}".rstrip() + f".{extension}"


def local_header(name: bytes, modified: datetime) -> bytes:
    """Precedes the content of an entry."""
    fields = (b"PK\x03\x04", _VERSION, _FLAGS, _STORED, *_dos_time(modified), 0, 0, 0, len(name), 0)
    return struct.pack("<4s5H3L2H", *fields) + name


def data_descriptor(crc: int, size: int) -> bytes:
    """Follows the content of an entry."""
    return struct.pack("<4s3L", b"PK\x07\x08", crc, size, size)


def directory_entry(name: bytes, modified: datetime, crc: int, size: int, offset: int) -> bytes:
    """An entry of the central directory; ``offset`` is that of the local header in the archive."""
    far = offset >= ENTRY_LIMIT
    extra = struct.pack("<2HQ", 1, 8, offset) if far else b""
    return (
        struct.pack(
            "<4s6H3L5H2L",
            b"PK\x01\x02",
            _MADE_BY_UNIX,
            _VERSION_64 if far else _VERSION,
            _FLAGS,
            _STORED,
            *_dos_time(modified),
            *(crc, size, size),
            *(len(name), len(extra), 0, 0, 0),
            *(_REGULAR_FILE, ENTRY_LIMIT if far else offset),
        )
        + name
        + extra
    )


def end_of_archive(count: int, size: int, offset: int) -> bytes:
    """Follows the central directory of ``count`` entries and ``size`` bytes, which begins at ``offset``."""
    end = b""
    if count >= MAX_ENTRIES_32 or max(size, offset) >= ENTRY_LIMIT:
        sums = (count, count, size, offset)
        end += struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, _MADE_BY_UNIX, _VERSION_64, 0, 0, *sums)
        end += struct.pack("<4sLQL", b"PK\x06\x07", 0, offset + size, 1)
    shown = min(count, MAX_ENTRIES_32)
    places = min(size, ENTRY_LIMIT), min(offset, ENTRY_LIMIT)
    return end + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, shown, shown, *places, 0)


def _dos_time(time: datetime) -> tuple[int, int]:
    """Time and date, in UTC, with a resolution of 2 s."""
    time = time.astimezone(UTC)
    clock = time.hour << 11 | time.minute << 5 | time.second // 2
    return clock, (time.year - 1980) << 9 | time.month << 5 | time.day
