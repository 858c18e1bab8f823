"""The reader process of a spreadsheet: ``python -m api.uploads.spreadsheet_process CPU MEMORY SIZE OUT MAPPING``.

Its standard input is the file. It writes a sheet as CSV in UTF-8 to the descriptor OUT, and one JSON object to its
standard output: the name of the sheet and the number of sheets, or an error. The kernel keeps the limits, whatever a
hostile file makes of this process: RLIMIT_CPU (CPU seconds), RLIMIT_DATA (MEMORY bytes; Linux only), RLIMIT_FSIZE (SIZE
bytes of CSV), and the sandbox of the image decoders. So it ends by itself, also when the API has died.
"""

import csv
import errno
import json
import os
import resource
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta
from typing import BinaryIO, NoReturn, TextIO

from python_calamine import CalamineSheet, CalamineWorkbook, PasswordError, SheetTypeEnum, SheetVisibleEnum

from api.uploads.csv.header import ColumnMapping, HeaderMismatch, match_header
from api.uploads.csv.problems import CsvProblem
from streams.compress.decoders import sandbox

MAX_UNPACKED_BYTES = 1024 * 1024 * 1024
"""Maximum declared size of an .xlsx or .ods: a sheet of a million rows with seven columns has half of it."""
SIGNIFICANT_DIGITS = 15  # as Excel and LibreOffice show numbers: 0.1 + 0.2 is 0.3

OUT_OF_MEMORY = 3  # exit code

SPREADSHEET_PARTS = ("xl/workbook.xml", "xl/workbook.bin", "content.xml")

OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # signature of a compound file
ENCRYPTED_PACKAGE = "EncryptedPackage".encode("utf-16-le")

Value = float | str | bool | time | date | datetime | timedelta  # of a cell; an empty one is ""


class Refused(Exception):
    """The file can't be used."""

    def __init__(self, code: CsvProblem, detail: str) -> None:
        super().__init__(detail)
        self.code = code


def main() -> NoReturn:
    cpu_seconds, memory_bytes, csv_bytes, out = map(int, sys.argv[1:5])
    mapping: ColumnMapping = json.loads(sys.argv[5])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 5))  # SIGXCPU, then SIGKILL
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (csv_bytes, csv_bytes))
    answer: dict[str, object]
    with os.fdopen(0, "rb") as source, os.fdopen(out, "w", encoding="utf-8", newline="") as target:
        "".encode("cp437")  # of file names in ZIP archives; Python loads it at its first use
        sandbox.enter()
        try:
            answer = _convert(source, target, mapping)
            target.flush()
        except Refused as refusal:
            answer = {"code": refusal.code, "detail": str(refusal)}
        except OSError as error:
            if error.errno not in (errno.EFBIG, errno.ENOSPC):
                raise
            answer = {"is_full": True}
        except MemoryError:
            os._exit(OUT_OF_MEMORY)
        sys.stdout.write(json.dumps(answer))
        sys.stdout.flush()
        os._exit(0)  # what can't be flushed must not fail once more


def _convert(source: BinaryIO, target: TextIO, mapping: ColumnMapping) -> dict[str, object]:
    """Write the sheet of ``source`` that has the columns as CSV to ``target``."""
    _check_archive(source)
    source.seek(0)
    with _reading(source):
        book = CalamineWorkbook.from_filelike(source)
        names = [
            sheet.name
            for sheet in book.sheets_metadata
            if sheet.typ == SheetTypeEnum.WorkSheet and sheet.visible == SheetVisibleEnum.Visible
        ]
    if not names:
        raise Refused(CsvProblem.EMPTY, "the spreadsheet has no visible sheet")
    name = max(names, key=lambda name: _matched(book, name, mapping))  # the first of several
    csv.writer(target).writerows(_rows(book, name))
    return {"sheet": name[:100], "sheets": len(names)}


def _check_archive(source: BinaryIO) -> None:
    """Raise Refused for a ZIP archive that is no spreadsheet, or a bomb."""
    if source.read(2) != b"PK":
        return
    try:
        with zipfile.ZipFile(source) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise _broken(error) from None
    if not any(part.filename in SPREADSHEET_PARTS for part in parts):
        raise Refused(
            CsvProblem.NOT_CSV,
            "this is not a CSV file or a spreadsheet but another office document or a ZIP archive: upload a CSV, XLSX,"
            " XLS or ODS file",
        )
    if (size := sum(part.file_size for part in parts)) > MAX_UNPACKED_BYTES:
        raise Refused(
            CsvProblem.SPREADSHEET_TOO_LARGE,
            f"the spreadsheet unpacks to {size:,} bytes; at most {MAX_UNPACKED_BYTES:,} are allowed: save it as CSV",
        )


def _matched(book: CalamineWorkbook, name: str, mapping: ColumnMapping) -> int:
    """Number of required columns in the header of a sheet; one that has all counts for more than any other."""
    header = next((row for row in _rows(book, name) if any(cell.strip() for cell in row)), [])
    try:
        match_header(header, mapping)
    except HeaderMismatch as mismatch:
        return mismatch.matched
    return 4


def _rows(book: CalamineWorkbook, name: str) -> Iterator[list[str]]:
    """All rows of a sheet from its first one, as texts."""
    with _reading():
        sheet: CalamineSheet = book.get_sheet_by_name(name)
        rows = sheet.iter_rows()
    while True:
        with _reading():
            row = next(rows, None)
        if row is None:
            return
        yield [_text(value) for value in row]


def _text(value: Value) -> str:
    """A cell as a spreadsheet shows it without a format of its own; dates as in ISO 8601, also in ``10:30``."""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, float | int):
        return str(int(value)) if value == int(value) and abs(value) < 1e15 else f"{value:.{SIGNIFICANT_DIGITS}g}"
    if isinstance(value, datetime):
        return value.isoformat(" ", "seconds")
    if isinstance(value, date | time):
        return value.isoformat()
    return str(value).replace("\0", "")


@contextmanager
def _reading(source: BinaryIO | None = None) -> Iterator[None]:
    """Raise Refused for any error of the library, since the file is its only input; ``source``: the file to open."""
    try:
        yield
    except MemoryError:
        raise
    except BaseException as error:  # noqa: BLE001 - so are Rust's panics
        if isinstance(error, PasswordError) or (source is not None and _is_encrypted(source)):
            raise Refused(
                CsvProblem.SPREADSHEET_PROTECTED, "the spreadsheet is protected by a password: save it without one"
            ) from None
        raise _broken(error) from None


def _is_encrypted(source: BinaryIO) -> bool:
    """Whether the file is an encrypted XLSX: a compound file with a stream of this name ([MS-OFFCRYPTO], 2.3)."""
    source.seek(0)
    tail = source.read(len(OLE))
    if tail != OLE:
        return False
    while chunk := source.read(1024 * 1024):
        if ENCRYPTED_PACKAGE in tail + chunk:
            return True
        tail = chunk[-len(ENCRYPTED_PACKAGE) :]
    return False


def _broken(error: BaseException) -> Refused:
    return Refused(
        CsvProblem.SPREADSHEET_BROKEN, f"the spreadsheet can't be read ({str(error)[:200]}): save it again, or as CSV"
    )


if __name__ == "__main__":
    main()
