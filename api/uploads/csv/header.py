"""Header matching: finds the required columns of an uploaded CSV."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

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
Role = Literal["serial", "product", "urls"]
_ROLES: dict[Role, tuple[str, tuple[str, ...]]] = {
    "serial": ("S. No.", _SERIAL),
    "product": ("Product Name", _PRODUCT_NAME),
    "urls": ("Input Image URLs", _URLS),
}

ColumnMapping = Mapping[Role, str]
"""Role → name of its column in the file; a role that is not in it is found by its usual names."""
NO_MAPPING: ColumnMapping = MappingProxyType({})

# Columns that the output CSV adds: in an uploaded output CSV they are dropped and written again.
_OUTPUT_COLUMNS = frozenset({"outputimageurls", "outputimageurl", "errors"})

_NOT_LETTERS_OR_DIGITS = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Columns:
    """Column indexes in a row of ``width`` cells; ``kept`` are the columns that the output CSV repeats.

    ``serial`` None: rows are numbered from 1.
    """

    serial: int | None
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


def parse_mapping(text: str) -> ColumnMapping:
    """Parse ``product:Title,urls:Image Src``, one line of CSV: an item whose header has a comma needs quotes.

    Raises ValueError for an unknown role, a role that occurs twice, a role without a header, and broken quotes.
    """
    mapping: dict[Role, str] = {}
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise ValueError(f"broken quotes ({error})") from None
    for item in (item for line in lines for item in line if item.strip()):
        name, _, header = (part.strip() for part in item.partition(":"))
        role = next((role for role in get_args(Role) if role == name.lower()), None)
        if role is None:
            raise ValueError(f"unknown role {name[:100]!r}: use {', '.join(get_args(Role))}")
        if not header:
            raise ValueError(f"the role {role!r} needs a column: {role}:HEADER")
        if role in mapping:
            raise ValueError(f"the role {role!r} occurs twice")
        mapping[role] = header
    return mapping


def match_header(cells: Sequence[str], mapping: ColumnMapping = NO_MAPPING) -> Columns:
    """Find the three required columns, in any order and among any others.

    Names are compared without case, spaces, dots, underscores, line breaks and other punctuation; of a mapped role, a
    column with exactly its name takes precedence. With a mapping, the serial column may be missing. Unnamed columns at
    the right end are ignored. Raises HeaderMismatch, which names each missing and each duplicate column.
    """
    width = len(cells)
    while width and not cells[width - 1].strip():
        width -= 1
    titles = [cell.strip() for cell in cells[:width]]
    names = [_normalised(title) for title in titles]
    found: dict[Role, int] = {}
    problems: list[HeaderProblem] = []
    for role in sorted(_ROLES, key=lambda role: role not in mapping):  # a mapped column has no other role
        name, spellings = _ROLES[role]
        if role in mapping:
            name, what = mapping[role], f"the column “{mapping[role]}” (mapped to {role})"
            columns = _columns_of(mapping[role], titles) or _columns_of(_normalised(mapping[role]), names)
        else:
            what = f"the column “{name}”"
            free = ["" if column in found.values() else name for column, name in enumerate(names)]
            columns = next(filter(None, (_columns_of(spelling, free) for spelling in spellings)), [])
        if len(columns) > 1:
            problems.append(HeaderProblem(name, CsvProblem.COLUMN_DOUBLED, f"{what} occurs {len(columns)} times"))
        elif columns and columns[0] in found.values():
            problems.append(HeaderProblem(name, CsvProblem.COLUMN_DOUBLED, f"{what} is mapped to another role, too"))
        elif columns:
            found[role] = columns[0]
        elif role != "serial" or role in mapping or not mapping:
            problems.append(HeaderProblem(name, CsvProblem.COLUMN_MISSING, f"{what} is missing"))
    if width > MAX_COLUMNS:
        problems.append(
            HeaderProblem(None, CsvProblem.TOO_MANY_COLUMNS, f"{width:,} columns; at most {MAX_COLUMNS} are allowed")
        )
    if problems:
        raise HeaderMismatch(len(found), problems)
    kept = tuple(column for column, name in enumerate(names) if name not in _OUTPUT_COLUMNS or column in found.values())
    return Columns(found.get("serial"), found["product"], found["urls"], kept, width)


def _normalised(name: str) -> str:
    return _NOT_LETTERS_OR_DIGITS.sub("", name.casefold())


def _columns_of(name: str, names: Sequence[str]) -> list[int]:
    return [column for column, each in enumerate(names) if name and each == name]
