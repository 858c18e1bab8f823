"""Parser of HTTP/1 responses, as lenient as browsers are and bounded. No I/O: bytes in, status, headers and body out.

Hosts that every browser shows images from break RFC 9112 in many ways, which the parsers of aiohttp and h11 refuse. The
rules here are Chromium's (net/http/http_stream_parser.cc, http_response_headers.cc, http_chunked_decoder.cc): header
lines without a colon or with a name that is none are skipped, equal Content-Lengths are one, chunked framing wins over
a length, a length that is no number means "until the connection closes".
"""

import re
from collections.abc import Iterator

from multidict import CIMultiDict

MAX_HEAD_BYTES = 68 * 1024
"""Headers of 64 KiB, and 4 KiB for status line and line ends (Chromium takes 256 KiB)."""

MAX_HEADER_LINES = 500

MAX_INTERIM = 10
"""Interim responses (1xx) before the real one."""

MAX_CHUNK_LINE = 16 * 1024
"""Size and extensions of a chunk (Chromium's kMaxLineBufLen)."""

FREE_FRAMING = 1024 * 1024
"""Bytes of chunk framing that need no body; beyond it there may be as much framing as body."""

# Chromium skips up to 4 bytes before the status line: the end of an earlier response.
_STATUS_LINE = re.compile(
    rb".{0,4}?HTTP/(\d{1,9})(?:\.(\d{1,9}))?[ \t]+(\d{3})(?!\d)[^\n]*(?=\n)", re.IGNORECASE | re.DOTALL
)
_STATUS_START = re.compile(rb".{0,4}?HTTP/", re.IGNORECASE | re.DOTALL)
_LONGEST_STATUS_START = 9
_HEAD_END = re.compile(rb"\n\r?\n")
_LINE_ENDS = re.compile(rb"[\r\n]+")
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEX = re.compile(rb"[0-9A-Fa-f]{1,15}")
_DIGITS = re.compile(r"[0-9]{1,18}")

WITHOUT_BODY = frozenset({204, 205, 304})


class MalformedResponse(Exception):
    """The bytes are no HTTP response, or one beyond the limits."""


class IncompleteResponse(Exception):
    """The connection was closed within the response."""


class ResponseParser:
    """Incremental parser of the response to one GET or POST.

    ``status`` is known as soon as the status line is complete, the headers only with ``headers_complete``. Interim
    responses are skipped. Header values are UTF-8 with surrogateescape.
    """

    def __init__(self) -> None:
        self.status: int | None = None
        self.headers: CIMultiDict[str] = CIMultiDict()
        self.headers_complete = False
        self.complete = False
        self.content_length: int | None = None
        """Announced size of the body in bytes; None: chunked, or until the connection closes."""
        self._version = (1, 1)
        self._buffer = bytearray()  # of the head, then of the line of a chunk
        self._searched = 0  # bytes of the buffer in which the head doesn't end
        self._interim = 0
        self._surplus = False
        self._chunked = False
        self._left: int | None = None  # bytes of the body or of the chunk; None: until the connection closes
        self._expects_chunk_end = False
        self._in_trailers = False
        self._framing = 0
        self._body = 0

    @property
    def is_reusable(self) -> bool:
        """Whether the connection can carry another request."""
        tokens = _tokens(self.headers, "Connection")
        keeps = "close" not in tokens and (self._version >= (1, 1) or "keep-alive" in tokens)
        return keeps and self.complete and not self._surplus and (self._chunked or self._left is not None)

    def feed(self, data: bytes) -> bytes:
        """Take what arrived; returns the part of it that belongs to the body. Raises MalformedResponse."""
        if not self.headers_complete:
            data = self._feed_head(data)
            if not self.headers_complete:
                return b""
        if self.complete:
            self._surplus = self._surplus or bool(data)
            return b""
        if self._chunked:
            return b"".join(self._unchunk(data))
        if self._left is None:
            return data
        body = data[: self._left]
        self._surplus = len(data) > self._left
        self._left -= len(body)
        self.complete = self._left == 0
        return body

    def feed_eof(self) -> None:
        """The connection was closed. Raises IncompleteResponse, or MalformedResponse if it was never HTTP."""
        if not self.headers_complete:
            start = bytes(self._buffer[:5]).upper()
            if self.status is None and start != b"HTTP/"[: len(start)]:
                raise MalformedResponse("not HTTP")
            raise IncompleteResponse
        # a last chunk without its empty line is the end, too
        if not self.complete and (self._left is not None or self._chunked) and not self._in_trailers:
            raise IncompleteResponse
        self.complete = True

    # --- head ---

    def _feed_head(self, data: bytes) -> bytes:
        """Returns what follows the head, once that is complete."""
        self._buffer += data
        while True:
            if self.status is None and not self._read_status_line():
                break
            end = _HEAD_END.search(self._buffer, self._searched)
            if end is None:
                self._searched = max(0, len(self._buffer) - 2)
                break
            if end.end() > MAX_HEAD_BYTES:
                raise MalformedResponse("the headers are too large")
            head, rest = bytes(self._buffer[: end.start()]), bytes(self._buffer[end.end() :])
            self._buffer.clear()
            if 100 <= (self.status or 0) < 200 and self.status != 101:
                self._interim += 1
                if self._interim > MAX_INTERIM:
                    raise MalformedResponse("too many interim responses")
                self.status = None
                self._buffer += rest
                continue
            self._read_headers(head)
            self._choose_framing()
            self.headers_complete = True
            return rest
        if len(self._buffer) > MAX_HEAD_BYTES:
            raise MalformedResponse("the headers are too large")
        return b""

    def _read_status_line(self) -> bool:
        """Whether the status line is complete. It is removed from the buffer, but for the end of its line."""
        while self._buffer.startswith((b"\r", b"\n")):
            stripped = self._buffer.lstrip(b"\r\n")
            self._framing += len(self._buffer) - len(stripped)
            self._buffer = stripped
            if self._framing > MAX_HEAD_BYTES:
                raise MalformedResponse("nothing but empty lines")
        match = _STATUS_LINE.match(self._buffer)
        if match is None:
            begins = _STATUS_START.match(self._buffer)
            if (begins is None and len(self._buffer) >= _LONGEST_STATUS_START) or (
                begins is not None and self._buffer.find(b"\n", begins.end()) >= 0
            ):
                raise MalformedResponse("no status line")
            return False
        major, minor, status = match.groups()
        self._version = int(major), int(minor or 0)
        self.status = int(status)
        del self._buffer[: match.end()]
        self._searched = 0
        return True

    def _read_headers(self, head: bytes) -> None:
        if b"\0" in head:
            raise MalformedResponse("a NUL in the headers")
        lines = list(filter(None, _LINE_ENDS.split(head)))
        if len(lines) > MAX_HEADER_LINES:
            raise MalformedResponse("too many header lines")
        for name, value in _unfolded(lines):
            self.headers.add(name.decode("ascii"), value.decode("utf-8", "surrogateescape"))

    def _choose_framing(self) -> None:
        if self.status in WITHOUT_BODY:
            self._left, self.complete = 0, True
            return
        # Chromium takes chunked of an HTTP/1.0 server for a mistake
        codings = _tokens(self.headers, "Transfer-Encoding")
        if "chunked" in codings and self._version >= (1, 1):
            self._chunked, self._left = True, 0
            return
        lengths = set(_tokens(self.headers, "Content-Length"))
        if len(lengths) > 1:
            raise MalformedResponse("different Content-Lengths")
        if lengths and _DIGITS.fullmatch(length := lengths.pop()):
            self.content_length = self._left = int(length)
            self.complete = self._left == 0

    # --- chunks ---

    def _unchunk(self, data: bytes) -> Iterator[bytes]:
        if self._buffer:
            data = bytes(self._buffer) + data
            self._buffer.clear()
        at = 0
        while at < len(data) and not self.complete:
            if self._left:
                piece = data[at : at + self._left]
                at += len(piece)
                self._left -= len(piece)
                self._body += len(piece)
                self._expects_chunk_end = self._left == 0
                yield piece
                continue
            end = data.find(b"\n", at)
            if (end if end >= 0 else len(data)) - at > MAX_CHUNK_LINE:
                raise MalformedResponse("the line of a chunk is too long")
            if end < 0:
                self._buffer += data[at:]
                return
            self._framing += end + 1 - at
            if self._framing > FREE_FRAMING + self._body:
                raise MalformedResponse("more chunk framing than body")
            self._read_chunk_line(data[at:end].removesuffix(b"\r"))
            at = end + 1
        self._surplus = at < len(data)

    def _read_chunk_line(self, line: bytes) -> None:
        if self._in_trailers:
            self.complete = not line
        elif self._expects_chunk_end:
            if line:
                raise MalformedResponse("a chunk is longer than its size")
            self._expects_chunk_end = False
        else:
            size = line.partition(b";")[0].strip(b" \t")
            if not _HEX.fullmatch(size.lstrip(b"0") or size[-1:]):
                raise MalformedResponse("a chunk without a size")
            self._left = int(size, 16)
            self._in_trailers = self._left == 0


def _tokens(headers: CIMultiDict[str], name: str) -> list[str]:
    """The comma-separated parts of all lines of a header, in lower case."""
    parts = (part.strip().lower() for line in headers.getall(name, ()) for part in line.split(","))
    return [part for part in parts if part]


def _unfolded(lines: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Name and value of each header; a line that begins with a space continues the one before (obs-fold)."""
    name, values = b"", list[bytes]()
    for line in lines:
        if line[:1] in (b" ", b"\t"):
            values.append(line.strip(b" \t"))
            continue
        if _TOKEN.fullmatch(name):
            yield name, b" ".join(values)
        before, colon, value = line.partition(b":")
        name, values = before.rstrip(b" \t") if colon else b"", [value.strip(b" \t")]
    if _TOKEN.fullmatch(name):
        yield name, b" ".join(values)
