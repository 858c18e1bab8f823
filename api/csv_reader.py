"""An uploaded CSV: checked as a whole first, then read again row by row.

Both passes stream a file on disk in constant memory and block: run them in a thread. Nothing is accepted in
part: one bad row refuses the file, and every bad row is counted so that the user mends them all at once.
"""

import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from api.csv_dialect import (
    DELIMITERS,
    CsvRejected,
    Dialect,
    RowError,
    detect_encoding,
    records,
    sep_line_delimiter,
)
from api.csv_header import Columns, HeaderMismatch, match_header
from api.csv_urls import shorten, split_urls, starts_with_url, url_problem
from streams.projections.csv_format import unprotect

__all__ = ["CheckedCsv", "CsvRejected", "Row", "RowError", "check", "check_in_steps", "next_step", "read_rows"]

MAX_SERIAL_CHARS = 100
MAX_NAME_CHARS = 500
MAX_BAD_ROWS_NAMED = 100
ROWS_OF_A_STEP = 2_000

MAX_ROW_BYTES = 900_000
"""Most bytes of a row's cells as JSON: they travel in one Kafka record, by default at most 1 MiB
(``max.message.bytes``, ``max.request.size``)."""

# JSON writes a control character in six bytes and no character in more: shorter rows need no measuring.
_SURELY_SMALL_CHARS = MAX_ROW_BYTES // 6 - 1024

# Tabs and line breaks are how people wrap a long name in a cell; no other control character is text.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")

_MARKUP = re.compile(
    r"\s*(?:(?P<HTML><(?:!doctype|html|head|body|table))|(?P<XML><)|(?P<RTF>\{\\rtf)|(?P<JSON>[{[]))",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class CheckedCsv:
    """A file that ``check`` found right, and how to read it.

    ``header`` has the cells that the output CSV repeats; ``rows`` and ``images`` are counts.
    """

    dialect: Dialect
    columns: Columns
    header: tuple[str, ...]
    rows: int
    images: int


@dataclass(frozen=True, slots=True)
class Row:
    """A row with its images. ``number`` counts the rows from 0, blank lines and the header left out.

    ``serial`` and ``product_name`` are trimmed; ``urls`` and ``cells`` are as given, ``cells`` aligned with
    ``CheckedCsv.header``. All are without the apostrophe that keeps a spreadsheet from running a formula.
    """

    number: int
    serial: str
    product_name: str
    urls: tuple[str, ...]
    cells: tuple[str, ...]


def check(path: Path, *, max_images: int, content_type: str | None = None) -> CheckedCsv:
    """All of ``check_in_steps`` at once."""
    steps = check_in_steps(path, max_images=max_images, content_type=content_type)
    while (checked := next_step(steps)) is None:
        pass
    return checked


def next_step(steps: Generator[None, None, CheckedCsv]) -> CheckedCsv | None:
    """Go on with a check; returns its outcome once there are no more steps. Raises CsvRejected."""
    try:
        next(steps)
    except StopIteration as end:
        checked: CheckedCsv = end.value
        return checked
    return None


def check_in_steps(
    path: Path, *, max_images: int, content_type: str | None = None
) -> Generator[None, None, CheckedCsv]:
    """Read the whole file once and make sure that ``read_rows`` can read it again without a surprise.

    The steps are short, so that a small file need not wait until a large one is done.

    Reading ends where ``max_images`` is passed: that bounds the time a file can take.
    ``content_type`` is the one the upload came with; only its charset counts, and only if the bytes leave
    it open. Raises CsvRejected.
    """
    dialect, header, columns = _recognise(path, content_type)
    found = _Findings(header)
    rows = images = 0
    data = records(path, dialect)
    next(data)
    try:
        for line, record in data:
            rows += 1
            if rows % ROWS_OF_A_STEP == 0:
                yield
            problems, row_images = _examine(record, columns)
            if problems:
                found.bad_row(line, problems)
            images += row_images
            if max(rows, images) > max_images:  # a row without an image is refused, so rows count as well
                message = f"there are more than {max_images:,} images, and an upload can't have more"
                found.whole_file("too_many_images", message, line)
                break
    except CsvRejected as rejected:  # the quotes went wrong: nothing can be said about the rest
        found.whole_file(rejected.errors[0].code, rejected.detail, rejected.errors[0].row)
    if not rows and not found.errors:
        found.whole_file("no_rows", "the file has a header but no rows", 1)
    if found.errors:
        raise found.rejection(rows, images)
    return CheckedCsv(dialect, columns, tuple(header[column] for column in columns.kept), rows, images)


def read_rows(path: Path, checked: CheckedCsv) -> Iterator[Row]:
    """The rows of a file that ``check`` accepted, in their order."""
    columns = checked.columns
    rows = records(path, checked.dialect)
    next(rows)
    for number, (_, record) in enumerate(rows):
        cells = _aligned(record, columns)
        yield Row(
            number,
            cells[columns.serial].strip(),
            cells[columns.product_name].strip(),
            split_urls(cells[columns.urls]),
            tuple([cells[column] for column in columns.kept]),
        )


def _recognise(path: Path, content_type: str | None) -> tuple[Dialect, list[str], Columns]:
    """The dialect in which the first record names the columns, that record, and where the columns are."""
    encoding = detect_encoding(path, content_type)
    declared = sep_line_delimiter(path, encoding)
    refusals: list[tuple[int, CsvRejected]] = []
    for delimiter in DELIMITERS if declared is None else (declared, *DELIMITERS):
        dialect = Dialect(encoding, delimiter, sep_line=declared is not None)
        try:
            line, cells = next(records(path, dialect), (1, []))
            header = [unprotect(cell) for cell in cells]
            if len(orjson.dumps(header)) > MAX_ROW_BYTES:
                raise CsvRejected.because(
                    "row_too_long", f"the header has more than {MAX_ROW_BYTES:,} bytes", line=line
                )
            return dialect, header, match_header(header)
        except CsvRejected as rejected:  # broken quotes, but perhaps only for this delimiter
            refusals.append((0, rejected))
        except HeaderMismatch as mismatch:
            refusals.append((mismatch.matched, _header_refused(mismatch, header, line)))
    # The delimiter that comes nearest tells best what is wrong; if none does, it may be no CSV at all.
    nearest, refusal = max(refusals, key=lambda pair: pair[0])
    raise (nearest == 0 and _markup_refused(path, encoding)) or refusal


def _header_refused(mismatch: HeaderMismatch, cells: list[str], line: int) -> CsvRejected:
    if not cells:
        return CsvRejected.because("empty", "the file is empty")
    if mismatch.matched == 0 and any(map(starts_with_url, cells)):
        return CsvRejected.because(
            "no_header", "the first row must name the columns, but it already holds image URLs", line=line
        )
    errors = [RowError(line, problem.column, problem.code, problem.message) for problem in mismatch.problems]
    found = ", ".join(cell.strip() for cell in cells if cell.strip())
    return CsvRejected(errors, 1, f"{mismatch}; the first row has: {shorten(found, 200)}")


def _markup_refused(path: Path, encoding: str) -> CsvRejected | None:
    """The refusal of HTML, XML, RTF or JSON, which web pages and editors save under a CSV's name."""
    with path.open(encoding=encoding) as file:
        match = _MARKUP.match(file.read(1024))
    if match is None:
        return None
    return CsvRejected.because("not_csv", f"this is not a CSV file but {match.lastgroup}: export the table as CSV")


Problem = tuple[int | None, str, str]  # column, code, message


class _Findings:
    """What is wrong with a file: all bad rows counted, the first of them named."""

    def __init__(self, header: Sequence[str]) -> None:
        self._titles = [shorten(cell.strip(), 100) for cell in header]
        self._bad_rows = 0
        self._of_the_file: list[str] = []
        self.errors: list[RowError] = []

    def bad_row(self, line: int, problems: Iterable[Problem]) -> None:
        self._bad_rows += 1
        if self._bad_rows <= MAX_BAD_ROWS_NAMED:
            for column, code, message in problems:
                self.errors.append(RowError(line, None if column is None else self._titles[column], code, message))

    def whole_file(self, code: str, message: str, line: int) -> None:
        self._of_the_file.append(message)
        self.errors.append(RowError(line, None, code, message))

    def rejection(self, rows: int, images: int) -> CsvRejected:
        bad_rows = [f"{self._bad_rows:,} of {rows:,} rows can't be used"] if self._bad_rows else []
        detail = "; ".join(bad_rows + self._of_the_file)
        return CsvRejected(self.errors, self._bad_rows + len(self._of_the_file), detail, rows=rows, images=images)


class _TooManyCells(Exception):
    pass


def _aligned(record: list[str], columns: Columns) -> list[str]:
    """The cells under each column, without a spreadsheet's apostrophes; missing ones are empty.

    URLs that stand beyond the last column belong to it if it is the URLs column: a list of URLs that lost
    its quotes. Raises _TooManyCells for anything else that is beyond the last column.
    """
    excess = len(record) - columns.width
    if excess < 0:
        record += [""] * -excess
    elif excess > 0:
        beyond = [cell for cell in record[columns.width :] if cell.strip()]
        del record[columns.width :]
        if beyond:
            urls = [record[columns.urls], *beyond]
            if columns.urls != columns.width - 1 or not all(map(starts_with_url, urls)):
                raise _TooManyCells
            record[columns.urls] = ",".join(urls)
    return [unprotect(cell) if cell[:1] == "'" else cell for cell in record]


def _examine(record: list[str], columns: Columns) -> tuple[list[Problem], int]:
    """What is wrong with a row, at most once for each column, and how many images it has."""
    if sum(map(len, record)) > _SURELY_SMALL_CHARS and len(orjson.dumps(record)) > MAX_ROW_BYTES:
        return [(None, "row_too_long", f"the row has more than {MAX_ROW_BYTES:,} bytes")], 0
    count = len(record)
    try:
        cells = _aligned(record, columns)
    except _TooManyCells:
        message = f"{count} cells under a header of {columns.width}: a cell that holds the delimiter needs quotes"
        return [(None, "too_many_cells", message)], 0
    urls = split_urls(cells[columns.urls])
    problems = [
        *_text_problems(cells[columns.serial].strip(), columns.serial, "serial", MAX_SERIAL_CHARS),
        *_text_problems(cells[columns.product_name].strip(), columns.product_name, "name", MAX_NAME_CHARS),
    ]
    if not urls:
        problems.append((columns.urls, "urls_missing", "there is no image URL"))
    for place, url in enumerate(urls, start=1):
        problem = url_problem(url)
        if problem:
            problems.append((columns.urls, problem[0], f"URL {place} {problem[1]}"))
            break
    return problems, len(urls)


def _text_problems(text: str, column: int, what: str, max_chars: int) -> list[Problem]:
    if not text:
        return [(column, f"{what}_missing", f"the {what} is empty")]
    if len(text) > max_chars:
        message = f"the {what} has {len(text):,} characters; at most {max_chars} are allowed"
        return [(column, f"{what}_too_long", message)]
    if _CONTROL.search(text):
        message = f"the {what} holds a control character: {shorten(text, 80)!r}"
        return [(column, f"{what}_control_character", message)]
    return []
