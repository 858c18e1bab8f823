"""Encoder of the output CSV: the input's rows with the output URLs and errors of their images. Pure.

RFC 4180 (comma, CRLF, quotes only where needed) in UTF-8 with a byte order mark, without which Excel takes
UTF-8 for the local code page.
"""

import codecs
import re
from collections.abc import Sequence

OUTPUT_URLS_COLUMN = "Output Image URLs"
ERRORS_COLUMN = "Errors"

# White space at the ends is quoted as well, because many readers (ours too) drop it from bare cells.
_NEEDS_QUOTES = re.compile(r'[",\r\n]|^\s|\s\Z')

# A text that begins with = + - @, also behind white space and quotes (https://owasp.org/www-community/attacks/
# CSV_Injection); full-width and small forms count, as some locales read them alike. A sign alone and a signed number
# (-12.5, +49 170 1234567, -1.5e-3, -5 %) are data that must stay a number: there is nothing in them to run.
_BEGINS_FORMULA = r"""
    ['"\s\ufeff\u200b]*
    (?: [=@\uff1d\uff20\ufe66\ufe6b]
      | [+\-\uff0b\uff0d\ufe62\ufe63]
        (?! [+\-]* %(end)s | \d [\d.,\ \u00a0\u202f]* (?: [eE][+\-]?\d+ )? \s? %%? %(end)s )
    )"""
# A whole cell is unsafe with a leading tab or line break, too.
_FORMULA = re.compile(_BEGINS_FORMULA % {"end": r"\Z"} + r"| '*[\t\r\n]", re.VERBOSE)
# Where the list separator of the locale is a semicolon, or with tabs, a part of our cell becomes a cell.
_INNER = _BEGINS_FORMULA % {"end": r"(?=[;\t]|\Z)"}
_BEFORE_INNER_FORMULA = re.compile(rf"(?<=[;\t])(?={_INNER})", re.VERBOSE)
_INNER_APOSTROPHE = re.compile(rf"(?<=[;\t])'(?={_INNER})", re.VERBOSE)
_SEPARATORS = re.compile(r"[;\t]")


def protect(cell: str) -> str:
    """The cell with an apostrophe before each formula that a spreadsheet would run; else as it is.

    A formula may be the cell, or begin after a semicolon or tab in it. ``unprotect(protect(cell)) == cell`` for every
    text, because a formula that already has an apostrophe gets one more.
    """
    inner = _BEFORE_INNER_FORMULA.sub("'", cell) if _SEPARATORS.search(cell) else cell
    return "'" + inner if _FORMULA.match(cell) else inner


def unprotect(cell: str) -> str:
    """The cell without the apostrophes that ``protect``, or a careful user, put before formulas."""
    whole = cell[1:] if cell[:1] == "'" and _FORMULA.match(cell, 1) else cell
    return _INNER_APOSTROPHE.sub("", whole) if _SEPARATORS.search(whole) else whole


def header(input_header: Sequence[str], *, with_errors: bool) -> bytes:
    """The beginning of the file: byte order mark and header line.

    ``with_errors`` adds the last column ``Errors``: exactly when an image of the request failed.
    """
    added = (OUTPUT_URLS_COLUMN, ERRORS_COLUMN) if with_errors else (OUTPUT_URLS_COLUMN,)
    return codecs.BOM_UTF8 + _line((*input_header, *added))


def row(cells: Sequence[str], output_urls: Sequence[str | None], errors: Sequence[str | None] | None) -> bytes:
    """One line: the input's cells, the output URLs, and the errors if the header has a column for them.

    The n-th of ``output_urls`` belongs to the n-th input URL and is None where that image failed, which
    leaves an empty item between the commas; the n-th of ``errors`` is its reason, or None. ``errors`` is None
    without the column.
    """
    added = [",".join(url or "" for url in output_urls)]
    if errors is not None:
        added.append("; ".join(f"image {n}: {error}" for n, error in enumerate(errors, start=1) if error))
    return _line((*cells, *added))


def _line(cells: Sequence[str]) -> bytes:
    return (",".join(map(_written, cells)) + "\r\n").encode()


def _written(cell: str) -> str:
    text = protect(cell)
    return '"' + text.replace('"', '""') + '"' if _NEEDS_QUOTES.search(text) else text
