"""Image URLs of a CSV cell: splitting and syntax validation.

The outbound client checks for SSRF at connection time; only URLs that can never be valid are rejected here,
so that the upload fails at once.
"""

import re

from api.uploads.csv.problems import CsvProblem

MAX_URL_CHARS = 2048

_SPACE = "".join(chr(code) for code in range(0x3001) if chr(code).isspace())  # U+3000 is the last
# Invisible marks (zero width, direction, byte order) that are copied along with a URL.
_MARKS = "\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff"
_SEPARATORS = "," + _SPACE + "".join(chr(code) for code in range(0x10000) if re.match(f"[{_MARKS}]", chr(code)))
_LIST_SEPARATORS = _SEPARATORS + "|;"

# One separator, not a run of them: matching a run from each of its positions would take quadratic time.
_BEFORE_URL = re.compile(rf"([,\s{_MARKS}])(?=https?://)", re.IGNORECASE)
_AUTHORITY = re.compile(r"https?://([^/?#]*)", re.IGNORECASE)
_HOST_AND_PORT = re.compile(r"(?:[\w.-]+|\[[0-9a-fA-F:.]+\])(?::(\d{0,5}))?")
_NEVER_IN_A_URL = re.compile(r"[^\S ]|[\x00-\x1f\x7f-\x9f]")
# Marks the next item of a list and never occurs inside a URL; `,not-a-url` and `,x:10` may be parts of a path, and
# `?u=https://…` is part of a query.
_OTHER_ITEM = re.compile(
    r",(?:\s|[a-z][a-z0-9+.-]*:/|(?:data|javascript|mailto|vbscript):|//)|[;|]\s?https?://|\s[;|!]\s", re.IGNORECASE
)
# `a.jpg ! alt : Red mug ! title : Mug`: attributes of an image in WooCommerce's CSV import suite.
_ATTRIBUTES = re.compile(r"\s!\s*(?:alt|title|desc|description|caption)\s*:", re.IGNORECASE)


def split_urls(cell: str) -> tuple[str, ...]:
    """The items of a URLs cell, in order, including duplicates.

    Commas or white space separate two items only before ``http://`` or ``https://``, because URLs may contain
    commas (``/w_300,h_200/cup.jpg``); so do ``|`` and ``;`` with white space (``a.jpg | b.jpg``, ``a.jpg; b.jpg``).
    Empty items, separators and invisible marks at the ends and WooCommerce's image attributes are ignored.
    """
    parts = _BEFORE_URL.split(cell)
    items = (_item(text, after) for text, after in zip(parts[::2], [*parts[1::2], ""], strict=True))
    return tuple(item for item in items if item)


def _item(text: str, after: str) -> str:
    """One item of a list, without its separators; ``after`` is the character before the next item."""
    item = _ATTRIBUTES.split(text, maxsplit=1)[0].lstrip(_LIST_SEPARATORS).rstrip(_SEPARATORS)
    before = item.rstrip("|;")
    # `a.jpg;` alone is a URL; `a.jpg; b.jpg` and `a.jpg |` are lists.
    return item.rstrip(_LIST_SEPARATORS) if after not in ("", ",") or before[-1:].isspace() else item


def starts_with_url(cell: str) -> bool:
    """Whether the cell begins with an http(s) URL."""
    return _AUTHORITY.match(cell.lstrip(_SEPARATORS)) is not None


def url_problem(url: str) -> tuple[CsvProblem, str] | None:
    """Validate one item of ``split_urls``: a stable code and a phrase for people, or None for a valid URL.

    Credentials are rejected because the URL is written to events, the output CSV and logs.
    """
    if len(url) > MAX_URL_CHARS:
        return CsvProblem.URL_TOO_LONG, f"has {len(url):,} characters; at most {MAX_URL_CHARS:,} are allowed"
    authority = _AUTHORITY.match(url)
    if authority is None:
        return CsvProblem.URL_SCHEME, f"is not an http:// or https:// URL: {_excerpt(url)}"
    if "@" in authority[1]:
        return CsvProblem.URL_USERINFO, "contains a user name or password"
    host_and_port = _HOST_AND_PORT.fullmatch(authority[1])
    if host_and_port is None or int(host_and_port[1] or 0) > 65535:
        return CsvProblem.URL_HOST, f"has no valid host or port: {_excerpt(url)}"
    if _OTHER_ITEM.search(url):
        return (
            CsvProblem.URL_SCHEME,
            f"must be followed by a comma and another http:// or https:// URL, or by nothing: {_excerpt(url)}",
        )
    if _NEVER_IN_A_URL.search(url):
        return CsvProblem.URL_CHARACTERS, f"contains a line break or control character: {_excerpt(url)}"
    return None


def shorten(text: str, max_chars: int) -> str:
    """Truncate a text for an error message, with an ellipsis."""
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"


def _excerpt(url: str) -> str:
    return repr(shorten(url, 80))
