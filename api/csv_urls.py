"""The URLs in a cell: where one ends and the next begins, and which are refused unseen.

Whether an address may be fetched is decided when it is connected to, by the guarded client; here only what
can never be right is refused, while the user still looks at the upload.
"""

import re

MAX_URL_CHARS = 2048

_SPACE = "".join(chr(code) for code in range(0x3001) if chr(code).isspace())  # U+3000 is the last
_SEPARATORS = "," + _SPACE

# One separator, not a run of them: a run would be tried from each of its places, in quadratic time.
_BEFORE_URL = re.compile(r"[,\s](?=https?://)", re.IGNORECASE)
_AUTHORITY = re.compile(r"https?://([^/?#]*)", re.IGNORECASE)
_HOST_AND_PORT = re.compile(r"(?:[\w.-]+|\[[0-9a-fA-F:.]+\])(?::(\d{0,5}))?")
_NEVER_IN_A_URL = re.compile(r"[^\S ]|[\x00-\x1f\x7f-\x9f]")
# What no URL goes on with, but a list does: `,not-a-url` and `,x:10` may be parts of a path, `?u=https://…` is one.
_OTHER_ITEM = re.compile(
    r",(?:\s|[a-z][a-z0-9+.-]*:/|(?:data|javascript|mailto|vbscript):|//)|[;|]\s?https?://", re.IGNORECASE
)


def split_urls(cell: str) -> tuple[str, ...]:
    """The items of a URLs cell in their order, duplicates included.

    Commas or white space separate two items only where ``http://`` or ``https://`` follows, for URLs hold
    commas themselves (``/w_300,h_200/cup.jpg``). Empty items and commas at the ends count for nothing.
    """
    items = (item.strip(_SEPARATORS) for item in _BEFORE_URL.split(cell))
    return tuple(item for item in items if item)


def starts_with_url(cell: str) -> bool:
    """Whether the first thing in the cell is an http(s) URL."""
    return _AUTHORITY.match(cell.lstrip(_SEPARATORS)) is not None


def url_problem(url: str) -> tuple[str, str] | None:
    """Why one item of ``split_urls`` is refused: a stable code and a phrase for people. None: it is fine.

    User names and passwords are refused because the URL goes into events, the output CSV and logs.
    """
    if len(url) > MAX_URL_CHARS:
        return "url_too_long", f"has {len(url):,} characters; at most {MAX_URL_CHARS:,} are allowed"
    authority = _AUTHORITY.match(url)
    if authority is None:
        return "url_scheme", f"is not an http:// or https:// URL: {_excerpt(url)}"
    if "@" in authority[1]:
        return "url_userinfo", "holds a user name or password"
    host_and_port = _HOST_AND_PORT.fullmatch(authority[1])
    if host_and_port is None or int(host_and_port[1] or 0) > 65535:
        return "url_host", f"has no valid host or port: {_excerpt(url)}"
    if _OTHER_ITEM.search(url):
        return (
            "url_scheme",
            f"is followed by something else than a comma and an http:// or https:// URL: {_excerpt(url)}",
        )
    if _NEVER_IN_A_URL.search(url):
        return "url_characters", f"holds a line break or control character: {_excerpt(url)}"
    return None


def shorten(text: str, max_chars: int) -> str:
    """The text, or its beginning and an ellipsis: what an error message shows of what it is about."""
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"


def _excerpt(url: str) -> str:
    return repr(shorten(url, 80))
