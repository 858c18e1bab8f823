"""The layout of ZIP archives, as Python's zipfile reads it, and the names in them."""

import io
import unicodedata
import zipfile
import zlib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.requests.zip_layout import data_descriptor, directory_entry, end_of_archive, entry_name, local_header

NOON = datetime(2026, 11, 28, 12, 30, 58, tzinfo=UTC)
GIB = 1024**3


def archive_of(contents: dict[str, bytes]) -> bytes:
    body = directory = b""
    for name, content in contents.items():
        crc = zlib.crc32(content)
        directory += directory_entry(name.encode(), NOON, crc, len(content), len(body))
        body += local_header(name.encode(), NOON) + content + data_descriptor(crc, len(content))
    return body + directory + end_of_archive(len(contents), len(directory), len(body))


@given(st.lists(st.tuples(st.text(), st.binary(max_size=50)), max_size=20))
def test_any_products_have_unique_safe_names(products: list[tuple[str, bytes]]) -> None:
    names = [entry_name(number, len(products), name, "jpg") for number, (name, _) in enumerate(products, 1)]
    assert names == sorted(names)
    assert len({unicodedata.normalize("NFKC", name).casefold() for name in names}) == len(names)
    for name in names:
        assert len(name.encode()) <= 120
        assert name[0].isdigit()
        assert name.endswith(".jpg")
        assert not set(name) & set('<>:"/\\|?*')
        assert not [char for char in name if unicodedata.category(char)[0] == "C"]
    contents = dict(zip(names, (content for _, content in products), strict=True))
    with zipfile.ZipFile(io.BytesIO(archive_of(contents))) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == contents


@pytest.mark.parametrize(
    ("product", "name"),
    [
        ("Space suit", "007 Space suit.png"),
        ("../../etc/passwd", "007 .._.._etc_passwd.png"),
        ("CON", "007 CON.png"),
        ("", "007.png"),
        (" . ", "007.png"),
        ("a\n\tb\x00\u202ec", "007 a b__c.png"),
        ("Cafe\u0301", "007 Caf\u00e9.png"),
        ("ü" * 80, f"007 {'ü' * 50}.png"),
    ],
)
def test_name_has_number_and_product(product: str, name: str) -> None:
    assert entry_name(7, 120, product, "png") == name


def test_entry_has_time_and_file_mode() -> None:
    with zipfile.ZipFile(io.BytesIO(archive_of({"1 a.png": b"a"}))) as archive:
        (entry,) = archive.infolist()
    assert entry.date_time == (2026, 11, 28, 12, 30, 58)
    assert entry.external_attr >> 16 == 0o100644
    assert entry.compress_type == zipfile.ZIP_STORED


def test_archive_has_more_entries_than_65535() -> None:
    entries = [(b"%d.png" % number, number) for number in range(66_000)]
    directory = b"".join(directory_entry(name, NOON, 0, 0, 0) for name, _ in entries)
    with zipfile.ZipFile(io.BytesIO(directory + end_of_archive(len(entries), len(directory), 0))) as archive:
        assert len(archive.namelist()) == 66_000


def test_archive_is_larger_than_4_gib(tmp_path: Path) -> None:
    """A sparse file: two entries with 5 GiB of nothing in between."""
    crc = zlib.crc32(b"image")
    entry = local_header(b"1.png", NOON) + b"image" + data_descriptor(crc, 5)
    directory = b"".join(
        directory_entry(name, NOON, crc, 5, offset) for name, offset in ((b"1.png", 0), (b"2.png", 5 * GIB))
    )
    with (tmp_path / "large.zip").open("w+b") as file:
        file.write(entry)
        file.seek(5 * GIB)
        file.write(entry.replace(b"1.png", b"2.png"))
        start = file.tell()
        file.write(directory + end_of_archive(2, len(directory), start))
        with zipfile.ZipFile(file) as archive:
            assert archive.testzip() is None
            assert archive.read("2.png") == b"image"
