"""Header matching: finds the required columns of an uploaded CSV."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from api.uploads.csv.problems import CsvProblem

MAX_COLUMNS = 256

# Normalised spellings (no case, spaces, punctuation), in order of precedence: "Product" is the name column only
# without a "Product Name"; otherwise it is an extra column.
_SERIAL = (
    *("sno", "serialnumber", "serialno", "srno", "slno", "snumber", "srnumber", "serialnum"),
    *("serial", "sr", "sl", "sn", "no"),
)
_PRODUCT_NAME = ("productname", "product", "name")
_URLS = (
    *("inputimageurls", "inputimageurl", "inputimagesurls", "inputimagesurl", "imageurls", "imageurl"),
    *("inputurls", "inputurl", "inputimages", "inputimage", "images", "image", "urls", "url"),
)
_REQUIRED = (("S. No.", _SERIAL), ("Product Name", _PRODUCT_NAME), ("Input Image URLs", _URLS))

# Columns that the output CSV adds: in an uploaded output CSV they are dropped and written again.
_OUTPUT_COLUMNS = frozenset({"outputimageurls", "outputimageurl", "errors"})

_NOT_LETTERS_OR_DIGITS = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Columns:
    """Column indexes in a row of ``width`` cells; ``kept`` are the columns that the output CSV repeats."""

    serial: int
    product_name: int
    urls: int
    kept: tuple[int, ...]
    width: int


@dataclass(frozen=True)
class HeaderProblem:
    """One error in a header; ``column`` is the name of the affected column, ``code`` is stable."""

    column: str | None
    code: CsvProblem
    message: str


class HeaderMismatch(Exception):
    """The row is not a valid header; ``matched`` is the number of required columns that it has."""

    def __init__(self, matched: int, problems: list[HeaderProblem]) -> None:
        super().__init__("; ".join(problem.message for problem in problems))
        self.matched = matched
        self.problems = problems


def match_header(cells: Sequence[str]) -> Columns:
    """Find the three required columns, in any order and among any others.

    Names are compared without case, spaces, dots, underscores, line breaks and other punctuation.
    Unnamed columns at the right end are ignored. Raises HeaderMismatch, which names each missing and each
    duplicate column.
    """
    width = len(cells)
    while width and not cells[width - 1].strip():
        width -= 1
    names = [_NOT_LETTERS_OR_DIGITS.sub("", cell.casefold()) for cell in cells[:width]]
    found: list[int] = []
    problems: list[HeaderProblem] = []
    for title, spellings in _REQUIRED:
        spelling = next((spelling for spelling in spellings if spelling in names), None)
        if spelling is None:
            problems.append(HeaderProblem(title, CsvProblem.COLUMN_MISSING, f"the column “{title}” is missing"))
        elif names.count(spelling) > 1:
            problems.append(
                HeaderProblem(
                    title, CsvProblem.COLUMN_DOUBLED, f"the column “{title}” occurs {names.count(spelling)} times"
                )
            )
        else:
            found.append(names.index(spelling))
    if width > MAX_COLUMNS:
        problems.append(
            HeaderProblem(None, CsvProblem.TOO_MANY_COLUMNS, f"{width:,} columns; at most {MAX_COLUMNS} are allowed")
        )
    if problems:
        raise HeaderMismatch(len(found), problems)
    serial, product_name, urls = found
    kept = tuple(column for column, name in enumerate(names) if name not in _OUTPUT_COLUMNS)
    return Columns(serial, product_name, urls, kept, width)
