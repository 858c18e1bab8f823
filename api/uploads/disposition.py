"""Content-Disposition of a form's parts, as leniently as browsers' and curl's senders need it.

aiohttp drops the whole header for a file name with two semicolons, ``name="file"`` too, and raises for others.
"""

import re
import warnings
from dataclasses import dataclass
from urllib.parse import unquote

from aiohttp import BadContentDispositionHeader, BadContentDispositionParam

# Of aiohttp, which parses the header too: Python keeps the text of each warning that it has shown, for ever.
warnings.filterwarnings("ignore", category=BadContentDispositionHeader)
warnings.filterwarnings("ignore", category=BadContentDispositionParam)

# A quoted value ends at a quote before the next parameter: some senders escape a quote within, some do not. The
# escapes \" and \\ only: Internet Explorer sent whole Windows paths.
_PARAMETER = re.compile(
    r';\s*(?P<name>[^\s;="]+)\s*=\s*(?:"(?P<quoted>(?:\\["\\]|[^"]|"(?!\s*(?:;|$)))*)"(?=\s*(?:;|$))|(?P<bare>[^;]*))'
)
_ESCAPED = re.compile(r'\\(["\\])')


@dataclass(frozen=True)
class Disposition:
    """The name of a form's part, and its file name if it is a file."""

    name: str | None
    filename: str | None


def parse_disposition(header: str) -> Disposition:
    """Read the ``name`` and the ``filename`` of ``form-data; …``, also in the extended notations.

    ``filename*`` (RFC 5987) takes precedence, then ``filename``, then the continuations ``filename*0`` (RFC 2231).
    """
    found: dict[str, str] = {}
    for match in _PARAMETER.finditer(header):
        quoted, bare = match["quoted"], match["bare"]
        value = _ESCAPED.sub(r"\1", quoted) if quoted is not None else bare.strip()
        found.setdefault(match["name"].lower(), value)
    filename = _extended(found["filename*"]) if "filename*" in found else found.get("filename")
    if filename is None:
        parts = [found.get(f"filename*{number}", found.get(f"filename*{number}*")) for number in range(10)]
        filename = "".join(filter(None, parts)) if any(part is not None for part in parts) else None
    return Disposition(found.get("name"), filename)


def _extended(value: str) -> str:
    """``charset'language'percent-encoded`` (RFC 5987) as text; anything else unchanged."""
    charset, _, rest = value.partition("'")
    _, quote, encoded = rest.partition("'")
    if not quote:
        return value
    try:
        return unquote(encoded, charset or "utf-8", "replace")
    except LookupError:  # an unknown charset
        return unquote(encoded)
