"""Spreadsheets as uploads: the same rows and errors as of a CSV, within limits that the kernel keeps."""

import asyncio
import random
import resource
import shutil
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from api.http.problems import Problem
from api.uploads import spreadsheet
from api.uploads.csv.header import NO_MAPPING, ColumnMapping, parse_mapping
from api.uploads.csv.reader import CheckedCsv, CsvRejected, Row, check_in_steps, next_step, read_rows
from api.uploads.limiter import UploadLimiter
from api.uploads.receive import Received
from api.uploads.spreadsheet import as_csv
from infra.settings import Settings
from tests.support.markdown import ROOT
from tests.support.spreadsheets import cell_in_the_last_corner, xlsx, zip_bomb

SAMPLES = ROOT / "tests" / "spreadsheets"
HEADER = ["S. No.", "Product Name", "Input Image URLs"]
ROW = ["1", "Mug", "https://shop.example/1.jpg"]


@asynccontextmanager
async def checked(
    folder: Path, data: bytes, mapping: ColumnMapping = NO_MAPPING, max_images: int = 1000, **changes: int
) -> AsyncIterator[tuple[Received, CheckedCsv]]:
    path = folder / "upload"
    path.write_bytes(data)
    settings = Settings(data_dir=folder).model_copy(update=changes)
    async with as_csv(Received(path, None), mapping, settings, UploadLimiter(1, 1)) as received:
        steps = check_in_steps(received.path, max_images=max_images, mapping=mapping, dialect=received.dialect)
        while (done := next_step(steps)) is None:
            pass
        yield received, done
    assert [each.name for each in folder.iterdir() if each.suffix == ".csv"] == []


async def rows_of(folder: Path, data: bytes, columns: str = "") -> tuple[tuple[str, ...], list[Row]]:
    async with checked(folder, data, parse_mapping(columns)) as (received, done):
        return done.header, list(read_rows(received.path, done))


async def refusal(folder: Path, data: bytes, columns: str = "", **changes: int) -> CsvRejected:
    with pytest.raises(CsvRejected) as caught:
        async with checked(folder, data, parse_mapping(columns), **changes):
            pass
    return caught.value


@pytest.mark.parametrize("name", ["products.xlsx", "products.xls", "products.ods"])
async def test_first_sheet_with_the_columns_is_read(tmp_path: Path, name: str) -> None:
    """Below an empty row, right of an empty column, behind a sheet of notes; cells as the programs show them."""
    async with checked(tmp_path, (SAMPLES / name).read_bytes()) as (received, done):
        first, second = read_rows(received.path, done)
    assert received.sheet == "Products"
    assert done.header == (*HEADER, "Added", "Price", "In stock", "Ratio", "At")
    assert (first.serial, first.product_name) == ("1", "Mug, blue\n“big”")
    assert first.urls == ("https://shop.example/1.jpg", "https://shop.example/2.jpg")
    assert first.cells[3:] == ("2026-11-28", "12.5", "TRUE", "0.3", "2026-11-28 10:30:00")
    assert second.cells[3:] == ("", "1234567890123", "FALSE", "", "09:05:00")


async def test_columns_can_be_mapped(tmp_path: Path) -> None:
    data = xlsx([["Handle", "Title", "Image Src"], ["mug", "Mug", ROW[2]], ["hat", "Hat", ROW[2]]])
    _, rows = await rows_of(tmp_path, data, "product:Title,urls:Image Src")
    assert [(row.serial, row.product_name) for row in rows] == [("1", "Mug"), ("2", "Hat")]
    rejected = await refusal(tmp_path, data)
    assert rejected.header == ("Handle", "Title", "Image Src")


async def test_errors_name_rows_of_the_sheet(tmp_path: Path) -> None:
    """Line breaks in cells and empty rows don't shift them."""
    data = xlsx([[], HEADER, ["1", "Mug\nblue\r\nbig", ROW[2]], [], ["2", "", "ftp://shop.example/2.jpg"]])
    rejected = await refusal(tmp_path, data)
    assert [(error.row, error.column, error.code) for error in rejected.errors] == [
        (5, "Product Name", "name_missing"),
        (5, "Input Image URLs", "url_scheme"),
    ]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"PK\x03\x04" + bytes(40), "spreadsheet_broken"),
        ((SAMPLES / "products.xlsx").read_bytes()[:4000], "spreadsheet_broken"),
        ((SAMPLES / "products.xls").read_bytes()[:4083], "spreadsheet_broken"),  # a panic of the library
        ((SAMPLES / "protected.xlsx").read_bytes(), "spreadsheet_protected"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(4096), "spreadsheet_broken"),
        (xlsx([[]]), "empty"),
        (xlsx([HEADER]), "no_rows"),
        (xlsx([["a", "b"]]), "column_missing"),
    ],
)
async def test_unusable_spreadsheets_are_named(tmp_path: Path, data: bytes, code: str) -> None:
    assert (await refusal(tmp_path, data)).errors[0].code == code


async def test_other_archives_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("word/document.xml", "<document/>")
    rejected = await refusal(tmp_path, (tmp_path / "a.zip").read_bytes())
    assert rejected.errors[0].code == "not_csv"
    assert "another office document" in rejected.detail


@pytest.mark.slow
async def test_damaged_spreadsheets_end_in_rejection(tmp_path: Path) -> None:
    """Whatever byte is wrong: rejected or read, never an error of ours."""
    chance = random.Random(7)
    for name in ("products.xlsx", "products.xls", "products.ods"):
        for _ in range(4):
            data = bytearray((SAMPLES / name).read_bytes())
            for _ in range(chance.randint(1, 20)):
                data[chance.randrange(8, len(data))] = chance.randrange(256)
            with suppress(CsvRejected):
                await rows_of(tmp_path, bytes(data))


async def test_bombs_are_refused_by_their_declared_size(tmp_path: Path) -> None:
    rejected = await refusal(tmp_path, zip_bomb())
    assert rejected.errors[0].code == "spreadsheet_too_large"
    assert "unpacks to 8,000,000,000 bytes" in rejected.detail


async def test_range_of_all_cells_is_refused(tmp_path: Path) -> None:
    assert (await refusal(tmp_path, cell_in_the_last_corner())).errors[0].code == "spreadsheet_too_large"


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "value"), [("CPU_SECONDS", 0), ("MEMORY_BYTES", 24 * 1024 * 1024)])
async def test_reader_process_is_stopped_by_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(spreadsheet, limit, value)
    data = xlsx([HEADER, *([str(number), f"Mug {number}", ROW[2] * 3] for number in range(40_000))])
    assert (await refusal(tmp_path, data)).errors[0].code == "spreadsheet_too_large"


async def test_sheet_is_limited_as_csv(tmp_path: Path) -> None:
    rejected = await refusal(tmp_path, xlsx([HEADER, *[ROW] * 1000]), max_upload_bytes=20_000)
    assert (rejected.errors[0].code, "20,000 bytes" in rejected.detail) == ("spreadsheet_too_large", True)
    assert (await refusal(tmp_path, xlsx([HEADER, *[ROW] * 20]), max_images=10)).errors[-1].code == "too_many_images"


async def test_full_disk_is_not_a_fault_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(Problem) as caught:
        async with checked(tmp_path, xlsx([HEADER, ROW]), min_free_bytes=shutil.disk_usage(tmp_path).total * 2):
            pass
    assert caught.value.code == "no-room"


async def test_cancelled_upload_ends_its_reader(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(xlsx([HEADER, *[ROW] * 50_000]))
    limiter = UploadLimiter(1, 1)

    async def convert() -> None:
        async with as_csv(Received(path, None), NO_MAPPING, Settings(data_dir=tmp_path), limiter):
            pass

    task = asyncio.create_task(convert())
    while not limiter.one_spreadsheet.locked():  # noqa: ASYNC110 - a semaphore tells nobody that it is taken
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not limiter.one_spreadsheet.locked()
    assert list(tmp_path.glob("*.csv")) == []


@pytest.mark.slow
async def test_hundred_thousand_rows_take_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spreadsheet, "MEMORY_BYTES", 200 * 1024 * 1024)  # of the reader, by the kernel
    rows = ([str(number), f"Mug {number}", f"https://shop.example/images/{number}.jpg"] for number in range(100_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with checked(tmp_path, xlsx([HEADER, *rows]), max_images=100_000) as (_, done):
        assert (done.rows, done.images) == (100_000, 100_000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB
