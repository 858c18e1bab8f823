"""Two-pass CSV reader: validates a whole file, then reads it row by row.

Both passes stream from disk in constant memory and block: run them in a thread. Uploads are atomic: one bad row
rejects the file, and all bad rows are reported at once.
"""

import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from api.uploads.csv.dialect import (
    DELIMITERS,
    CsvRejected,
    Dialect,
    RowError,
    detect_encoding,
    read_cells,
    read_cells_in_steps,
    sep_line_delimiter,
)
from api.uploads.csv.header import NO_MAPPING, ColumnMapping, Columns, HeaderMismatch, match_header
from api.uploads.csv.problems import CsvProblem
from api.uploads.csv.urls import shorten, split_urls, starts_with_url, url_problem
from streams.projections.csv_format import unprotect

__all__ = ["CheckedCsv", "CsvRejected", "Row", "RowError", "check", "check_in_steps", "next_step", "read_rows"]

MAX_SERIAL_CHARS = 100
MAX_NAME_CHARS = 500
MAX_BAD_ROWS_NAMED = 100
ROWS_PER_STEP = 2_000

MAX_ROW_BYTES = 64 * 1024
"""Maximum bytes of a row's cells as JSON. A thousand rows are read together: what one takes in Kafka, in Cassandra and
in the memory of every reader is bounded by it."""
MAX_HEADER_BYTES = 16 * 1024
"""Maximum bytes of the header as JSON: every API and progress process keeps those of all requests in memory."""

# JSON encodes a character in at most six bytes: rows up to this length can't exceed MAX_ROW_BYTES.
_ALWAYS_FITS_CHARS = MAX_ROW_BYTES // 6 - 1024

# Tabs and line breaks wrap long names in a cell; other control characters are rejected.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")

_MARKUP = re.compile(
    r"\s*(?:(?P<HTML><(?:!doctype|html|head|body|table))|(?P<XML><)|(?P<RTF>\{\\rtf)|(?P<JSON>[{[]))",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class CheckedCsv:
    """A validated file and how to parse it.

    ``header`` are the header cells that the output CSV repeats; ``rows`` and ``images`` are counts.
    """

    dialect: Dialect
    columns: Columns
    header: tuple[str, ...]
    rows: int
    images: int


@dataclass(frozen=True, slots=True)
class Row:
    """A CSV row with its image URLs. ``number`` counts rows from 0, without blank rows and the header.

    ``serial`` and ``product_name`` are trimmed; without a serial column, ``serial`` counts rows from 1. ``urls`` and
    ``cells`` are unchanged, ``cells`` aligned with
    ``CheckedCsv.header``. The apostrophe that protects against formula injection is removed from all of them.
    """

    number: int
    serial: str
    product_name: str
    urls: tuple[str, ...]
    cells: tuple[str, ...]


def check(
    path: Path, *, max_images: int, content_type: str | None = None, mapping: ColumnMapping = NO_MAPPING
) -> CheckedCsv:
    """Validate the whole file in one call. Raises CsvRejected."""
    steps = check_in_steps(path, max_images=max_images, content_type=content_type, mapping=mapping)
    while (checked := next_step(steps)) is None:
        pass
    return checked


def next_step(steps: Generator[None, None, CheckedCsv]) -> CheckedCsv | None:
    """Run the next step of a validation; returns the result after the last step, else None. Raises CsvRejected."""
    try:
        next(steps)
    except StopIteration as end:
        checked: CheckedCsv = end.value
        return checked
    return None


def check_in_steps(
    path: Path,
    *,
    max_images: int,
    content_type: str | None = None,
    mapping: ColumnMapping = NO_MAPPING,
    dialect: Dialect | None = None,
) -> Generator[None, None, CheckedCsv]:
    """Validate the whole file, in steps of some 0.1 s that let small files interleave with large ones.

    After it, ``read_rows`` can't fail. Reading stops at ``max_images``, which bounds the time per file.
    ``content_type`` is the upload's; only its charset is used, and only if the bytes are ambiguous. ``mapping`` are
    the upload's names of columns; ``dialect`` None: it is detected. Raises CsvRejected.
    """
    dialect, header, columns = yield from _detect(path, content_type, mapping, dialect)
    found = _Errors(header)
    rows = images = 0
    lines = read_cells_in_steps(path, dialect)
    yield from _first(lines)
    try:
        for row in lines:
            if row is None:
                yield
                continue
            line, cells = row
            rows += 1
            if rows % ROWS_PER_STEP == 0:
                yield
            problems, row_images = _check_row(cells, columns)
            if problems:
                found.bad_row(line, problems)
            images += row_images
            if max(rows, images) > max_images:  # each valid row has an image, so rows are bounded as well
                message = f"the upload has more than {max_images:,} images, the limit"
                found.whole_file(CsvProblem.TOO_MANY_IMAGES, message, line)
                break
    except CsvRejected as rejected:  # broken quotes: the rest can't be parsed
        found.whole_file(rejected.errors[0].code, rejected.detail, rejected.errors[0].row)
    if not rows and not found.errors:
        found.whole_file(CsvProblem.NO_ROWS, "the file has a header but no rows", 1)
    if found.errors:
        raise found.rejection(rows, images)
    return CheckedCsv(dialect, columns, tuple(header[column] for column in columns.kept), rows, images)


def read_rows(path: Path, checked: CheckedCsv) -> Iterator[Row]:
    """The rows of a validated file, in order."""
    columns = checked.columns
    rows = read_cells(path, checked.dialect)
    next(rows)
    for number, (_, row_cells) in enumerate(rows):
        cells = _aligned(row_cells, columns)
        yield Row(
            number,
            str(number + 1) if columns.serial is None else cells[columns.serial].strip(),
            cells[columns.product_name].strip(),
            split_urls(cells[columns.urls]),
            tuple([cells[column] for column in columns.kept]),
        )


Line = tuple[int, list[str]]  # the number of a row's first line, and its cells


def _first(rows: Iterator[Line | None]) -> Generator[None, None, Line]:
    """The first row, in steps; an empty one of line 1 if there is none."""
    for row in rows:
        if row is not None:
            return row
        yield
    return 1, []


def _detect(
    path: Path, content_type: str | None, mapping: ColumnMapping, known: Dialect | None
) -> Generator[None, None, tuple[Dialect, list[str], Columns]]:
    """Detect the dialect by the first row that is a valid header, in steps; returns dialect, header and columns."""
    dialects = [known] if known is not None else (yield from _possible_dialects(path, content_type))
    rejections: list[tuple[tuple[int, int], CsvRejected]] = []
    for dialect in dialects:
        try:
            line, cells = yield from _first(read_cells_in_steps(path, dialect))
            header = [unprotect(cell) for cell in cells]
            if len(orjson.dumps(header)) > MAX_HEADER_BYTES:
                raise CsvRejected.because(
                    CsvProblem.ROW_TOO_LONG, f"the header has more than {MAX_HEADER_BYTES:,} bytes", line=line
                )
            return dialect, header, match_header(header, mapping)
        except CsvRejected as rejected:  # broken quotes, but perhaps only for this delimiter
            rejections.append(((0, 1), rejected))
        except HeaderMismatch as mismatch:
            rejections.append(((mismatch.matched, max(1, len(header))), _header_error(mismatch, header, line)))
    # The delimiter with the most matched columns, then the most columns, gives the best error; without any match it may
    # not be a CSV at all.
    (matched, _), rejection = max(rejections, key=lambda pair: pair[0])
    raise (matched == 0 and _markup_error(path, dialects[0].encoding)) or rejection


def _possible_dialects(path: Path, content_type: str | None) -> Generator[None, None, list[Dialect]]:
    encoding = yield from detect_encoding(path, content_type)
    declared = sep_line_delimiter(path, encoding)
    delimiters = DELIMITERS if declared is None else (declared, *DELIMITERS)
    return [Dialect(encoding, delimiter, sep_line=declared is not None) for delimiter in delimiters]


def _header_error(mismatch: HeaderMismatch, cells: list[str], line: int) -> CsvRejected:
    if not cells:
        return CsvRejected.because(CsvProblem.EMPTY, "the file is empty")
    if mismatch.matched == 0 and any(map(starts_with_url, cells)):
        return CsvRejected.because(
            CsvProblem.NO_HEADER, "the header is missing: the first row contains image URLs", line=line
        )
    errors = [RowError(line, problem.column, problem.code, problem.message) for problem in mismatch.problems]
    found = ", ".join(cell.strip() for cell in cells if cell.strip())
    return CsvRejected(errors, 1, f"{mismatch}; the first row has: {shorten(found, 200)}", header=cells)


def _markup_error(path: Path, encoding: str) -> CsvRejected | None:
    """The error for HTML, XML, RTF or JSON that was saved with the extension .csv."""
    with path.open(encoding=encoding) as file:
        match = _MARKUP.match(file.read(1024))
    if match is None:
        return None
    return CsvRejected.because(
        CsvProblem.NOT_CSV, f"this is not a CSV file but {match.lastgroup}: export the table as CSV"
    )


Problem = tuple[int | None, CsvProblem, str]  # column, code, message


class _Errors:
    """Errors of a file: counts all bad rows, keeps the errors of the first of them."""

    def __init__(self, header: Sequence[str]) -> None:
        self._header = header
        self._titles = [shorten(cell.strip(), 100) for cell in header]
        self._bad_rows = 0
        self._file_errors: list[str] = []
        self.errors: list[RowError] = []

    def bad_row(self, line: int, problems: Iterable[Problem]) -> None:
        self._bad_rows += 1
        if self._bad_rows <= MAX_BAD_ROWS_NAMED:
            for column, code, message in problems:
                self.errors.append(RowError(line, None if column is None else self._titles[column], code, message))

    def whole_file(self, code: CsvProblem, message: str, line: int) -> None:
        self._file_errors.append(message)
        self.errors.append(RowError(line, None, code, message))

    def rejection(self, rows: int, images: int) -> CsvRejected:
        bad_rows = [f"{self._bad_rows:,} of {rows:,} rows are invalid"] if self._bad_rows else []
        detail = "; ".join(bad_rows + self._file_errors)
        count = self._bad_rows + len(self._file_errors)
        return CsvRejected(self.errors, count, detail, rows=rows, images=images, header=self._header)


class _TooManyCells(Exception):
    pass


def _aligned(cells: list[str], columns: Columns) -> list[str]:
    """Pad or truncate a row to the header's width, in place; returns it without the formula-protecting apostrophes.

    URLs beyond the last column are joined into it if it is the URLs column: a list of URLs that lost its quotes.
    Raises _TooManyCells for any other cell beyond the last column.
    """
    excess = len(cells) - columns.width
    if excess < 0:
        cells += [""] * -excess
    elif excess > 0:
        extra = [cell for cell in cells[columns.width :] if cell.strip()]
        del cells[columns.width :]
        if extra:
            urls = [cells[columns.urls], *extra]
            if columns.urls != columns.width - 1 or not all(map(starts_with_url, urls)):
                raise _TooManyCells
            cells[columns.urls] = ",".join(urls)
    return [unprotect(cell) if "'" in cell else cell for cell in cells]


def _check_row(cells: list[str], columns: Columns) -> tuple[list[Problem], int]:
    """Validate a row; returns at most one problem per column, and the number of images."""
    if sum(map(len, cells)) > _ALWAYS_FITS_CHARS and len(orjson.dumps(cells)) > MAX_ROW_BYTES:
        return [(None, CsvProblem.ROW_TOO_LONG, f"the row has more than {MAX_ROW_BYTES:,} bytes")], 0
    count = len(cells)
    try:
        cells = _aligned(cells, columns)
    except _TooManyCells:
        message = f"{count} cells, but the header has {columns.width}: quote cells that contain the delimiter"
        return [(None, CsvProblem.TOO_MANY_CELLS, message)], 0
    urls = split_urls(cells[columns.urls])
    problems = _text_problems(cells[columns.product_name].strip(), columns.product_name, "name", MAX_NAME_CHARS)
    if columns.serial is not None:
        problems[:0] = _text_problems(cells[columns.serial].strip(), columns.serial, "serial", MAX_SERIAL_CHARS)
    if not urls:
        problems.append((columns.urls, CsvProblem.URLS_MISSING, "the image URL is missing"))
    for number, url in enumerate(urls, start=1):
        problem = url_problem(url)
        if problem:
            problems.append((columns.urls, problem[0], f"URL {number} {problem[1]}"))
            break
    return problems, len(urls)


def _text_problems(text: str, column: int, what: str, max_chars: int) -> list[Problem]:
    if not text:
        return [(column, CsvProblem(f"{what}_missing"), f"the {what} is empty")]
    if len(text) > max_chars:
        message = f"the {what} has {len(text):,} characters; at most {max_chars} are allowed"
        return [(column, CsvProblem(f"{what}_too_long"), message)]
    if _CONTROL.search(text):
        message = f"the {what} contains a control character: {shorten(text, 80)!r}"
        return [(column, CsvProblem(f"{what}_control_character"), message)]
    return []
