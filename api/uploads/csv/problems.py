"""Error codes of an uploaded CSV."""

from enum import StrEnum
from typing import Self


class CsvProblem(StrEnum):
    """Stable code of an error in an uploaded CSV, with its meaning for docs/limits-and-reasons.md (`make docs`)."""

    meaning: str

    def __new__(cls, code: str, meaning: str = "") -> Self:
        member = str.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    EMPTY = "empty", "the file is empty"
    NOT_CSV = "not_csv", "the file is neither a CSV nor a spreadsheet"
    SPREADSHEET_BROKEN = "spreadsheet_broken", "the spreadsheet is damaged"
    SPREADSHEET_PROTECTED = "spreadsheet_protected", "the spreadsheet is protected by a password"
    SPREADSHEET_TOO_LARGE = (
        "spreadsheet_too_large",
        "more than 30 CPU seconds or 512 MiB of memory to read it, 1 GiB unpacked, or `MAX_UPLOAD_BYTES` as a CSV",
    )
    BINARY = "binary", "a line contains binary data (NUL)"
    ENCODING = "encoding", "some bytes are invalid in the file's encoding"
    NO_HEADER = "no_header", "the first row already has image URLs"
    COLUMN_MISSING = "column_missing", "one of the three columns is missing"
    COLUMN_DOUBLED = "column_doubled", "one of the three columns occurs more than once"
    TOO_MANY_COLUMNS = "too_many_columns", "more than 256 columns"
    NO_ROWS = "no_rows", "a header without rows"
    TOO_MANY_BLANK_ROWS = "too_many_blank_rows", "more than 1,048,576 blank rows, as many as a spreadsheet has"
    TOO_MANY_IMAGES = "too_many_images", "more than `SHRINKSTREAM_MAX_IMAGES_PER_REQUEST`"
    QUOTE_UNCLOSED = "quote_unclosed", "a quote is never closed"
    QUOTE_BROKEN = "quote_broken", "characters between a closing quote and the next delimiter"
    ROW_TOO_LONG = "row_too_long", "a row of more than 65,536 bytes, or a header of more than 16,384"
    TOO_MANY_CELLS = "too_many_cells", "more cells than the header has: a cell that contains the delimiter needs quotes"
    SERIAL_MISSING = "serial_missing", "no serial number"
    SERIAL_TOO_LONG = "serial_too_long", "a serial number of more than 100 characters"
    SERIAL_CONTROL_CHARACTER = "serial_control_character", "control characters in a serial number"
    NAME_MISSING = "name_missing", "no product name"
    NAME_TOO_LONG = "name_too_long", "a product name of more than 500 characters"
    NAME_CONTROL_CHARACTER = "name_control_character", "control characters in a product name"
    URLS_MISSING = "urls_missing", "no URL"
    URL_SCHEME = (
        "url_scheme",
        "a URL that begins neither with `http://` nor with `https://`, also in a list; `;` or `\\|` between two URLs",
    )
    URL_HOST = "url_host", "a URL without a valid host or port"
    URL_USERINFO = "url_userinfo", "credentials in the URL: they would appear in events, CSVs and logs"
    URL_CHARACTERS = "url_characters", "line breaks or control characters in a URL"
    URL_TOO_LONG = "url_too_long", "a URL of more than 2,048 characters"
