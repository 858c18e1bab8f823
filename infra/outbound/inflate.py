"""Bounded decompression of response bodies."""

import zlib
from collections.abc import Iterator

from multidict import CIMultiDict

from infra.outbound.reasons import OutboundError, Reason


class Inflater:
    """Incremental decoder of ``Content-Encoding: gzip`` or ``deflate``, bounded against decompression bombs."""

    STEP = 64 * 1024

    MAX_MEMBERS = 100
    """Members of a gzip stream: each costs time, even if it holds nothing."""

    def __init__(self, encoding: str) -> None:
        self._gzip = encoding != "deflate"
        self._stream: zlib._Decompress | None = None
        self._members = 0

    @property
    def complete(self) -> bool:
        """Whether the data so far ends at the end of a compressed stream."""
        return self._stream is None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Decompressed pieces of at most STEP bytes each, lazily. Raises zlib.error, also beyond MAX_MEMBERS."""
        more = False  # zlib has output left after the last byte of input
        while data or more:
            if self._stream is None:
                # RFC 1952 §2.2: gzip members may follow one another. Other trailing bytes are ignored.
                if self._members and not (self._gzip and data[0] == 0x1F):
                    return
                if self._members == self.MAX_MEMBERS:
                    raise zlib.error("too many gzip members")
                self._stream = zlib.decompressobj(self._window_bits(data))
            piece = self._stream.decompress(data, self.STEP)
            if self._stream.eof:
                data, more = self._stream.unused_data, False
                self._stream = None
                self._members += 1
            else:
                data, more = self._stream.unconsumed_tail, len(piece) == self.STEP
            yield piece

    def _window_bits(self, data: bytes) -> int:
        if self._gzip:
            return 16 + zlib.MAX_WBITS
        # "deflate" means zlib (RFC 9110 §8.4.1.2), but some servers send it without the zlib header.
        return zlib.MAX_WBITS if data[0] & 0x0F == 8 else -zlib.MAX_WBITS


_SUPPORTED = frozenset({"gzip", "x-gzip", "deflate"})

# Codings that browsers decode and we don't: their bytes are no image.
_UNSUPPORTED = frozenset({"br", "zstd", "dcb", "dcz"})


def inflater_of(headers: CIMultiDict[str], host: str | None) -> Inflater | None:
    """Decoder of the Content-Encoding. Our requests accept none, but some servers compress all the same.

    Any other token means nothing, as in browsers: `none`, `utf-8`, `base64` or `aws-chunked` stand before bytes that
    are not encoded at all.
    """
    encodings = [
        encoding
        for line in headers.getall("Content-Encoding", ())
        for part in line.split(",")
        if (encoding := part.strip().lower()) in _SUPPORTED | _UNSUPPORTED
    ]
    if not encodings:
        return None
    if len(encodings) == 1 and encodings[0] in _SUPPORTED:
        return Inflater(encodings[0])
    raise OutboundError(Reason.BAD_ENCODING, f"{host} sends an unsupported Content-Encoding")
