"""CSV dialect of an uploaded file: detects the encoding and parses lines and cells.

Everything streams: at most one row of the file is in memory at a time. Where RFC 4180 is silent or ignored, the rules
follow spreadsheets and scripts (``sep=`` lines, UTF-16, lone CR, Ctrl-Z).
"""

import codecs
import csv
import io
import re
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from api.uploads.csv.problems import CsvProblem

DELIMITERS = (",", ";", "\t", "|")

MAX_ROW_CHARS = 1024 * 1024
"""Maximum characters of a row, quotes and line breaks included: bounds the memory of a reader."""

CHARS_PER_STEP = 1024 * 1024
"""Characters read in one step, some 0.1 s of parsing: steps of small and large files alternate."""

MAX_BLANK_ROWS = 1_048_576
"""Maximum blank rows of a file, the row limit of an Excel sheet: bounds the time to parse them."""

# Process-wide setting of the csv module; its default of 128 KiB is too small for a cell of many URLs.
csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_CHARS))

_BLOCK_BYTES = 256 * 1024
_SNIFFED_BYTES = 4096

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose BOM is a prefix of this one
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

# Allow-list: charset parameter → Python codec. As in the WHATWG Encoding Standard, ISO-8859 charsets map to their
# Windows supersets. Other Python codecs are slow (idna) or not charsets at all.
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

_SIGNATURES = (
    (b"%PDF-", "a PDF document", "export the source table as CSV"),
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
    """One error in an uploaded file.

    ``row`` is the line number of the row's first line, from 1, or the number of a spreadsheet's row; ``column`` is the
    header of the column, None for an error of the whole row or file; ``code`` is stable, ``message`` is for people.
    """

    row: int
    column: str | None
    code: CsvProblem
    message: str


class CsvRejected(Exception):
    """The whole file is rejected.

    ``errors`` are the errors of the first 100 bad rows, in file order; ``error_count`` counts all bad rows (an error
    of the whole file counts as one); ``detail`` is one sentence for people. ``rows`` and ``images`` count what was
    read until the end or the error, valid or not; ``header`` are the cells of the header, if it was read.
    """

    def __init__(
        self,
        errors: list[RowError],
        error_count: int,
        detail: str,
        *,
        rows: int = 0,
        images: int = 0,
        header: Sequence[str] = (),
    ) -> None:
        super().__init__(detail)
        self.header = tuple(header)
        self.rows = rows
        self.images = images
        self.errors = errors
        self.error_count = error_count
        self.detail = detail

    @classmethod
    def because(cls, code: CsvProblem, detail: str, *, line: int = 1) -> "CsvRejected":
        """One error that ends parsing."""
        return cls([RowError(line, None, code, detail)], 1, detail)


@dataclass(frozen=True)
class Dialect:
    """CSV dialect of a file; ``sep_line``: the first line is Excel's ``sep=`` and holds no data.

    ``counts_rows``: rows are numbered instead of lines, as in the spreadsheet that the file was made of.
    """

    encoding: str
    delimiter: str
    sep_line: bool = False
    counts_rows: bool = False


def detect_encoding(path: Path, content_type: str | None = None) -> Generator[None, None, str]:
    """Detect the file's encoding, a Python codec: by its byte order mark, else UTF-16 by its NULs, else UTF-8.

    A file that is not valid UTF-8 is decoded with the charset of ``content_type``, else as Windows-1252, the encoding
    of Excel's "CSV" in the West. The declared charset has the lowest priority because HTTP clients declare ISO-8859-1
    for anything, whereas text with accents is never valid UTF-8 by accident. The media type is ignored: browsers on
    Windows send CSV files as application/vnd.ms-excel.

    A generator of steps. Raises CsvRejected for a file that is not text, for NULs, and for undecodable bytes.
    """
    with path.open("rb") as file:
        head = file.read(_SNIFFED_BYTES)
    if not head:
        raise CsvRejected.because(CsvProblem.EMPTY, "the file is empty")
    for signature, kind, advice in _SIGNATURES:
        if head.startswith(signature):
            raise CsvRejected.because(CsvProblem.NOT_CSV, f"this is not a CSV file but {kind}: {advice}")
    for mark, encoding in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            yield from _read_through(path, encoding)
            return encoding
    odd, even = head[1::2].count(0), head[::2].count(0)
    if (odd + even) * 20 >= len(head):
        encoding = "utf-16-le" if odd > even else "utf-16-be"
        yield from _read_through(path, encoding)
        return encoding
    try:
        yield from _read_through(path, "utf-8")
    except _NeverUtf8:
        fallback = _declared_charset(content_type) or "cp1252"
        yield from _read_through(path, fallback)
        return fallback
    return "utf-8"


class _NeverUtf8(Exception):
    """The first non-ASCII bytes are not valid UTF-8, so the file is in another encoding."""


def _declared_charset(content_type: str | None) -> str | None:
    parameter = _CHARSET_PARAMETER.search(content_type or "")
    return _CHARSETS.get(parameter.group(1).lower()) if parameter else None


def _read_through(path: Path, encoding: str) -> Generator[None, None, None]:
    """Decode the whole file, a block per step, so that no later pass can fail on an undecodable byte."""
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
                    CsvProblem.ENCODING,
                    f"the bytes near line {line} are not valid {encoding.upper().removesuffix('-SIG')}, the encoding"
                    " of the rest of the file: save it as CSV in UTF-8",
                    line=line,
                ) from None
            if "\0" in text:
                line += text[: text.index("\0")].count("\n")
                raise CsvRejected.because(
                    CsvProblem.BINARY, f"line {line} contains binary data (NUL): not a CSV", line=line
                )
            if not block:
                return
            line += text.count("\n")
            ascii_so_far = ascii_so_far and text.isascii()
            yield


def sep_line_delimiter(path: Path, encoding: str) -> str | None:
    """The delimiter of Excel's ``sep=;`` in the first line, or None without such a line."""
    with path.open(encoding=encoding, newline="") as file:
        match = _SEP_LINE.fullmatch(file.readline(64))
    return match["delimiter"] if match else None


def read_cells(path: Path, dialect: Dialect) -> Iterator[tuple[int, list[str]]]:
    """Each row that is not blank, including the header: the number of its first line, from 1, and its cells.

    Spaces before a cell are dropped, because ``1, "Mug, blue"`` is common and means a quoted cell.
    Raises CsvRejected, which ends the iteration, for broken quotes, a row that is too long and too many blank rows.
    """
    return (row for row in read_cells_in_steps(path, dialect) if row is not None)


def read_cells_in_steps(path: Path, dialect: Dialect) -> Iterator[tuple[int, list[str]] | None]:
    """The rows of ``read_cells``, and None after each ``CHARS_PER_STEP``, blank rows included."""
    with path.open(encoding=dialect.encoding, newline="") as file:
        lines = _Lines(file, skip_first=dialect.sep_line)
        reader = csv.reader(iter(lines), delimiter=dialect.delimiter, skipinitialspace=True, strict=True)
        line = 1
        blank_rows = step_chars = 0
        try:
            for cells in reader:
                if "".join(cells).strip():
                    yield line, cells
                elif (blank_rows := blank_rows + 1) > MAX_BLANK_ROWS:
                    raise CsvRejected.because(
                        CsvProblem.TOO_MANY_BLANK_ROWS, f"there are more than {MAX_BLANK_ROWS:,} blank rows", line=line
                    )
                line = line + 1 if dialect.counts_rows else reader.line_num + 1
                if (step_chars := step_chars + lines.row_chars) > CHARS_PER_STEP:
                    step_chars = 0
                    yield None
                lines.row_chars = 0
        except csv.Error as error:
            raise _broken_row(line, reader.line_num, str(error)) from None
        except _RowTooLong:
            raise CsvRejected.because(
                CsvProblem.ROW_TOO_LONG,
                f"the row that begins on line {line} has more than {MAX_ROW_CHARS:,} characters;"
                " check for an unclosed quote",
                line=line,
            ) from None


def _broken_row(first: int, last: int, reason: str) -> CsvRejected:
    if reason == "unexpected end of data":
        return CsvRejected.because(
            CsvProblem.QUOTE_UNCLOSED,
            f"a quote opened in the row that begins on line {first} is never closed",
            line=first,
        )
    where = f"line {first}" if first == last else f"the row on lines {first} to {last}"
    return CsvRejected.because(
        CsvProblem.QUOTE_BROKEN,
        f'{where} has broken quotes: a closing quote must end its cell, and a quote inside is doubled ("")',
        line=first,
    )


class _RowTooLong(Exception):
    pass


class _Lines:
    """The physical lines of a text, terminated by CR, LF or CRLF only (U+2028 is data).

    ``row_chars`` counts the characters of the current row; the consumer resets it at the end of each row. It bounds
    the memory of a long line and of a row that spans many lines.
    """

    def __init__(self, file: io.TextIOWrapper, *, skip_first: bool) -> None:
        self._file = file
        self._skip_first = skip_first
        self.row_chars = 0

    def __iter__(self) -> Iterator[str]:
        readline = self._file.readline
        if self._skip_first:
            readline()
            yield "\n"  # a blank line instead keeps the reader's line numbers right
        while line := readline(MAX_ROW_CHARS + 1):
            self.row_chars += len(line)
            if self.row_chars > MAX_ROW_CHARS:
                raise _RowTooLong
            if line[-1] == "\x1a":  # Ctrl-Z, the end-of-file mark of DOS
                line = line.rstrip("\x1a")
            yield line
