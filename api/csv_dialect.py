"""From the bytes of an uploaded file to its records: which encoding, which lines, which cells.

Everything here streams: no more than one row of the file is in memory at a time. The rules follow what
spreadsheets and scripts write, where RFC 4180 is silent or ignored (``sep=`` lines, UTF-16, lone CR, Ctrl-Z).
"""

import codecs
import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DELIMITERS = (",", ";", "\t", "|")

MAX_ROW_CHARS = 1024 * 1024
"""Most characters of one row, quotes and line breaks included: what bounds the memory of a reader."""

MAX_BLANK_ROWS = 1_048_576
"""Most blank rows of a file: a sheet of Excel has no more rows, and each costs time though it says nothing."""

# Process-wide, as the csv module has it; its own 128 KiB is too little for a cell of many URLs.
csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_CHARS))

_BLOCK_BYTES = 256 * 1024
_SNIFFED_BYTES = 4096

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is the beginning of this one
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

# Charset parameters worth believing → Python's codec. The Windows superset stands in where the WHATWG
# Encoding Standard says so. An allow-list, for some of Python's codecs are slow (idna) or no charsets at all.
_CHARSETS = {
    **{f"windows-125{n}": f"cp125{n}" for n in range(9)},
    **{f"iso-8859-{n}": f"iso8859-{n}" for n in (2, 3, 4, 5, 6, 7, 8, 10, 13, 14, 15, 16)},
    "iso-8859-1": "cp1252",
    "iso-8859-9": "cp1254",
    "koi8-r": "koi8-r",
    "shift_jis": "cp932",
    "euc-jp": "euc_jp",
    "euc-kr": "cp949",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "gb18030": "gb18030",
    "big5": "big5hkscs",
}
_CHARSET_PARAMETER = re.compile(r';\s*charset\s*=\s*"?([\w.:-]+)', re.IGNORECASE)

_SAVE_AS_CSV = "open it in the spreadsheet program and save it as CSV"
_SIGNATURES = (
    (b"PK\x03\x04", "an Excel workbook (XLSX), another office document or a ZIP archive", _SAVE_AS_CSV),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel workbook (XLS)", _SAVE_AS_CSV),
    (b"%PDF-", "a PDF document", "upload the table that it was made from as CSV"),
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (b"BZh9", "a bzip2 archive", "unpack it first"),
    (b"\xfd7zXZ\x00", "an xz archive", "unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive", "unpack it first"),
    (b"\xff\xd8\xff", "a JPEG image", "upload a CSV of image URLs"),
    (b"\x89PNG\r\n\x1a\n", "a PNG image", "upload a CSV of image URLs"),
    (b"GIF8", "a GIF image", "upload a CSV of image URLs"),
    (b"RIFF", "a WebP image or another media file", "upload a CSV of image URLs"),
    (b"II*\x00", "a TIFF image", "upload a CSV of image URLs"),
    (b"MM\x00*", "a TIFF image", "upload a CSV of image URLs"),
)

_SEP_LINE = re.compile(r'"?sep=(?P<delimiter>[^\w\s"]|\t)(?P=delimiter)*"?\s*', re.IGNORECASE)


@dataclass(frozen=True)
class RowError:
    """One thing wrong with an upload.

    ``row`` is the line of the file, from 1, on which the row begins, as a text editor counts; ``column`` is
    the header cell of the column, if it is about one; ``code`` is stable, ``message`` is for people.
    """

    row: int
    column: str | None
    code: str
    message: str


class CsvRejected(Exception):
    """The file is refused as a whole.

    ``errors`` has what is wrong with the first 100 bad rows, in the order of the file; ``error_count`` counts
    all bad rows (a fault of the whole file counts as one); ``detail`` is one sentence for people. ``rows`` and
    ``images`` count what was read, bad or not, as far as it was.
    """

    def __init__(
        self, errors: list[RowError], error_count: int, detail: str, *, rows: int = 0, images: int = 0
    ) -> None:
        super().__init__(detail)
        self.rows = rows
        self.images = images
        self.errors = errors
        self.error_count = error_count
        self.detail = detail

    @classmethod
    def because(cls, code: str, detail: str, *, line: int = 1) -> "CsvRejected":
        """One fault that makes reading on pointless."""
        return cls([RowError(line, None, code, detail)], 1, detail)


@dataclass(frozen=True)
class Dialect:
    """How a file's bytes become cells; ``sep_line``: the first line is Excel's ``sep=`` and holds no data."""

    encoding: str
    delimiter: str
    sep_line: bool = False


def detect_encoding(path: Path, content_type: str | None = None) -> str:
    """The Python codec that reads the file: by its byte order mark, else UTF-16 by its NULs, else UTF-8.

    What is not UTF-8 is read in the charset that ``content_type`` declares, else in Windows-1252, which is
    what Excel's "CSV" means in the West. The declaration comes last because HTTP clients declare ISO-8859-1
    for anything, whereas text with accents is never valid UTF-8 by accident. The media type itself is not
    looked at: browsers on Windows send CSV files as application/vnd.ms-excel.

    Raises CsvRejected for another kind of file, for NULs, and for bytes that no such encoding has.
    """
    with path.open("rb") as file:
        head = file.read(_SNIFFED_BYTES)
    if not head:
        raise CsvRejected.because("empty", "the file is empty")
    for signature, kind, advice in _SIGNATURES:
        if head.startswith(signature):
            raise CsvRejected.because("not_csv", f"this is not a CSV file but {kind}: {advice}")
    for mark, encoding in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            _read_through(path, encoding)
            return encoding
    odd, even = head[1::2].count(0), head[::2].count(0)
    if (odd + even) * 20 >= len(head):
        encoding = "utf-16-le" if odd > even else "utf-16-be"
        _read_through(path, encoding)
        return encoding
    try:
        _read_through(path, "utf-8")
    except _NeverUtf8:
        fallback = _declared_charset(content_type) or "cp1252"
        _read_through(path, fallback)
        return fallback
    return "utf-8"


class _NeverUtf8(Exception):
    """The very first bytes beyond ASCII are not UTF-8, so the file was not written as UTF-8."""


def _declared_charset(content_type: str | None) -> str | None:
    parameter = _CHARSET_PARAMETER.search(content_type or "")
    return _CHARSETS.get(parameter.group(1).lower()) if parameter else None


def _read_through(path: Path, encoding: str) -> None:
    """Decode the whole file (at memory speed) so that no later pass can stumble over an undecodable byte."""
    decoder = codecs.getincrementaldecoder(encoding)()
    line = 1
    ascii_so_far = True
    with path.open("rb") as file:
        while True:
            block = file.read(_BLOCK_BYTES)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                before = error.object[: error.start]
                if encoding == "utf-8" and ascii_so_far and before.isascii():
                    raise _NeverUtf8 from None
                line += before.count(b"\n")
                raise CsvRejected.because(
                    "encoding",
                    f"the bytes near line {line} are not {encoding.upper().removesuffix('-SIG')}, as the rest"
                    " of the file is: save it as CSV in UTF-8",
                    line=line,
                ) from None
            if "\0" in text:
                line += text[: text.index("\0")].count("\n")
                raise CsvRejected.because("binary", f"line {line} holds binary data (NUL): this is no CSV", line=line)
            if not block:
                return
            line += text.count("\n")
            ascii_so_far = ascii_so_far and text.isascii()


def sep_line_delimiter(path: Path, encoding: str) -> str | None:
    """The delimiter that Excel's ``sep=;`` in the first line names, or None if there is no such line."""
    with path.open(encoding=encoding, newline="") as file:
        match = _SEP_LINE.fullmatch(file.readline(64))
    return match["delimiter"] if match else None


def records(path: Path, dialect: Dialect) -> Iterator[tuple[int, list[str]]]:
    """Each record that is not blank, the header too: the line on which it begins, from 1, and its cells.

    Spaces before a cell are dropped, because ``1, "Mug, blue"`` is common and means a quoted cell.
    Raises CsvRejected where the quotes are broken, a row does not end or blank rows don't; there is no
    reading on after that.
    """
    with path.open(encoding=dialect.encoding, newline="") as file:
        lines = _Lines(file, skip_first=dialect.sep_line)
        reader = csv.reader(iter(lines), delimiter=dialect.delimiter, skipinitialspace=True, strict=True)
        line = 1
        blank_rows = 0
        try:
            for cells in reader:
                if "".join(cells).strip():
                    yield line, cells
                elif (blank_rows := blank_rows + 1) > MAX_BLANK_ROWS:
                    raise CsvRejected.because(
                        "too_many_blank_rows", f"there are more than {MAX_BLANK_ROWS:,} blank rows", line=line
                    )
                line = reader.line_num + 1
                lines.row_chars = 0
        except csv.Error as error:
            raise _broken_row(line, reader.line_num, str(error)) from None
        except _RowTooLong:
            raise CsvRejected.because(
                "row_too_long",
                f"the row that begins on line {line} has more than {MAX_ROW_CHARS:,} characters;"
                " is a quote never closed?",
                line=line,
            ) from None


def _broken_row(first: int, last: int, reason: str) -> CsvRejected:
    if reason == "unexpected end of data":
        return CsvRejected.because(
            "quote_unclosed",
            f"a quote opened in the row that begins on line {first} is never closed",
            line=first,
        )
    where = f"line {first}" if first == last else f"the row on lines {first} to {last}"
    return CsvRejected.because(
        "quote_broken",
        f'{where} has broken quotes: a closing quote must end its cell, and a quote inside is doubled ("")',
        line=first,
    )


class _RowTooLong(Exception):
    pass


class _Lines:
    """The physical lines of a text, ended by CR, LF or CRLF and by nothing else (U+2028 is data).

    ``row_chars`` counts what was given out since the consumer last set it to 0, at the end of each row:
    both a line and a row over many lines are cut off before they fill the memory.
    """

    def __init__(self, file: io.TextIOWrapper, *, skip_first: bool) -> None:
        self._file = file
        self._skip_first = skip_first
        self.row_chars = 0

    def __iter__(self) -> Iterator[str]:
        readline = self._file.readline
        if self._skip_first:
            readline()
            yield "\n"  # a blank line in its place keeps the reader's line numbers right
        while line := readline(MAX_ROW_CHARS + 1):
            self.row_chars += len(line)
            if self.row_chars > MAX_ROW_CHARS:
                raise _RowTooLong
            if line[-1] == "\x1a":  # DOS's end of file, which can only stand in the last line
                line = line.rstrip("\x1a")
            yield line
