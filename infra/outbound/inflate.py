"""Bounded decompression of response bodies."""

import zlib
from collections.abc import Iterator

from multidict import CIMultiDict, CIMultiDictProxy

from infra.outbound.reasons import OutboundError, Reason


class Inflater:
    """Incremental decoder of ``Content-Encoding: gzip`` or ``deflate``, bounded against decompression bombs."""

    STEP = 64 * 1024

    def __init__(self, encoding: str) -> None:
        self._gzip = encoding != "deflate"
        self._stream: zlib._Decompress | None = None
        self._one_ended = False

    @property
    def complete(self) -> bool:
        """Whether the data so far ends at the end of a compressed stream."""
        return self._stream is None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Decompressed pieces of at most STEP bytes each, lazily. Raises zlib.error."""
        more = False  # zlib has output left after the last byte of input
        while data or more:
            if self._stream is None:
                # RFC 1952 §2.2: gzip members may follow one another. Other trailing bytes are ignored.
                if self._one_ended and not (self._gzip and data[0] == 0x1F):
                    return
                self._stream = zlib.decompressobj(self._window_bits(data))
            piece = self._stream.decompress(data, self.STEP)
            if self._stream.eof:
                data, more = self._stream.unused_data, False
                self._stream, self._one_ended = None, True
            else:
                data, more = self._stream.unconsumed_tail, len(piece) == self.STEP
            yield piece

    def _window_bits(self, data: bytes) -> int:
        if self._gzip:
            return 16 + zlib.MAX_WBITS
        # "deflate" means zlib (RFC 9110 §8.4.1.2), but some servers send it without the zlib header.
        return zlib.MAX_WBITS if data[0] & 0x0F == 8 else -zlib.MAX_WBITS


def inflater_of(headers: CIMultiDictProxy[str] | CIMultiDict[str], host: str | None) -> Inflater | None:
    """Decoder of the Content-Encoding. Our requests accept none, but some servers compress all the same."""
    encodings = [
        encoding
        for line in headers.getall("Content-Encoding", ())
        for part in line.split(",")
        if (encoding := part.strip().lower()) not in ("", "identity")
    ]
    if not encodings:
        return None
    if encodings in (["gzip"], ["x-gzip"], ["deflate"]):
        return Inflater(encodings[0])
    raise OutboundError(Reason.BAD_ENCODING, f"{host} sends an unsupported Content-Encoding")
