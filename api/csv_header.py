"""Which column of an uploaded CSV is which."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

MAX_COLUMNS = 256

# Spellings with case, spaces and punctuation taken away, best first: "Product" is the name only where there
# is no "Product Name"; beside one it is an extra column like any other.
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

# Columns that the output CSV adds: a file that has them is an output CSV uploaded again, and gets them anew.
_OF_OUTPUT = frozenset({"outputimageurls", "outputimageurl", "errors"})

_NOT_LETTERS_OR_DIGITS = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Columns:
    """Where things stand in a record of ``width`` cells; ``kept`` are the columns that the output repeats."""

    serial: int
    product_name: int
    urls: int
    kept: tuple[int, ...]
    width: int


@dataclass(frozen=True)
class HeaderProblem:
    """What is wrong with a header; ``column`` is the name of the column it is about, ``code`` is stable."""

    column: str | None
    code: str
    message: str


class HeaderMismatch(Exception):
    """The record can't be the header; ``matched`` tells how many of the three columns it does name."""

    def __init__(self, matched: int, problems: list[HeaderProblem]) -> None:
        super().__init__("; ".join(problem.message for problem in problems))
        self.matched = matched
        self.problems = problems


def match_header(cells: Sequence[str]) -> Columns:
    """Find the three columns in any order, with any others between them.

    Names are compared without case, spaces, dots, underscores, line breaks and other punctuation.
    Unnamed columns at the right end don't count. Raises HeaderMismatch, which names each missing and each
    doubled column.
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
            problems.append(HeaderProblem(title, "column_missing", f"the column “{title}” is missing"))
        elif names.count(spelling) > 1:
            problems.append(
                HeaderProblem(title, "column_doubled", f"the column “{title}” stands {names.count(spelling)} times")
            )
        else:
            found.append(names.index(spelling))
    if width > MAX_COLUMNS:
        problems.append(
            HeaderProblem(None, "too_many_columns", f"there are {width:,} columns; at most {MAX_COLUMNS} are read")
        )
    if problems:
        raise HeaderMismatch(len(found), problems)
    serial, product_name, urls = found
    kept = tuple(column for column, name in enumerate(names) if name not in _OF_OUTPUT)
    return Columns(serial, product_name, urls, kept, width)
