"""Responses as careless and hostile servers write them: what browsers read is read, within bounds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.outbound.http1 import (
    FREE_FRAMING,
    MAX_CHUNK_LINE,
    MAX_HEAD_BYTES,
    MAX_HEADER_LINES,
    MAX_INTERIM,
    IncompleteResponse,
    MalformedResponse,
    ResponseParser,
)

OK = b"HTTP/1.1 200 OK\r\n"
PIXELS = b"pixels of an image"
LENGTH = b"Content-Length: %d\r\n" % len(PIXELS)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CHUNKS = b"7\r\npixels \r\nb\r\nof an image\r\n0\r\n\r\n"


def parsed(octets: bytes, *, ended: bool = False) -> tuple[ResponseParser, bytes]:
    parser = ResponseParser()
    body = parser.feed(octets)
    if ended:
        parser.feed_eof()
    return parser, body


FRAMED = {
    "length": OK + LENGTH + b"\r\n" + PIXELS,
    "equal lengths": OK + LENGTH * 2 + b"\r\n" + PIXELS,
    "equal lengths in three spellings": OK + LENGTH + b"content-length:%d\r\n\r\n" % len(PIXELS) + PIXELS,
    "equal lengths in one line": OK + b"Content-Length: 18, 18\r\n\r\n" + PIXELS,
    "an empty length beside one": OK + LENGTH + b"Content-Length:\r\n\r\n" + PIXELS,
    "chunked": OK + CHUNKED + b"\r\n" + CHUNKS,
    "chunked and length": OK + CHUNKED + b"Content-Length: 3\r\n\r\n" + CHUNKS,
    "chunked and different lengths": OK + b"Content-Length: 3\r\nContent-Length: 4\r\n" + CHUNKED + b"\r\n" + CHUNKS,
    "chunked after another coding": OK + b"Transfer-Encoding: identity, Chunked\r\n\r\n" + CHUNKS,
    "padded chunk sizes": OK + CHUNKED + b"\r\n12   \r\n" + PIXELS + b"\r\n0  \r\n\r\n",
    "chunk sizes with many zeros": OK + CHUNKED + b"\r\n" + b"0" * 30 + b"12\r\n" + PIXELS + b"\r\n0000\r\n\r\n",
    "chunks with extensions": OK + CHUNKED + b'\r\n012;a="b";c\r\n' + PIXELS + b"\r\n0;x\r\n\r\n",
    "chunks with bare line feeds": OK + CHUNKED + b"\r\n12\n" + PIXELS + b"\n0\n\n",
    "chunks and trailers": OK + CHUNKED + b"\r\n12\r\n" + PIXELS + b"\r\n0\r\nX: y\r\nno colon\r\n\r\n",
    "identity": OK + b"Transfer-Encoding: identity\r\n" + LENGTH + b"\r\n" + PIXELS,
    "header without colon": OK + b"X-XSS-Protection=1;\r\n" + LENGTH + b"\r\n" + PIXELS,
    "space before the colon": OK + b"X-Cache : HIT\r\nContent-Length\t: 18\r\n\r\n" + PIXELS,
    "space within a name": OK + b"X Powered By: PHP\r\n" + LENGTH + b"\r\n" + PIXELS,
    "no name": OK + b": nothing\r\n" + LENGTH + b"\r\n" + PIXELS,
    "name that is no token": OK + b"X-\xc3\xbc: 1\r\nSet(Cookie): 2\r\n" + LENGTH + b"\r\n" + PIXELS,
    "folded header": OK + b"X: a\r\n\tb\r\n c: d\r\nContent-Length:\r\n 18\r\n\r\n" + PIXELS,
    "fold before the first header": OK + b" X: a\r\n" + LENGTH + b"\r\n" + PIXELS,
    "bare line feeds": b"HTTP/1.1 200 OK\nContent-Length: 18\n\n" + PIXELS,
    "mixed line ends": b"HTTP/1.1 200 OK\nA: b\r\r\nContent-Length: 18\r\n\n" + PIXELS,
    "control and other bytes in values": OK + b"X: \x01\x7f\xff\xfe\r\n" + LENGTH + b"\r\n" + PIXELS,
    "no reason phrase": b"HTTP/1.1 200\r\n" + LENGTH + b"\r\n" + PIXELS,
    "reason in Latin-1": b"HTTP/1.1 200 \xfcber\r\n" + LENGTH + b"\r\n" + PIXELS,
    "several spaces": b"HTTP/1.1   200  OK\r\n" + LENGTH + b"\r\n" + PIXELS,
    "lower case": b"http/1.1 200 ok\r\n" + LENGTH.lower() + b"\r\n" + PIXELS,
    "HTTP/1.10": b"HTTP/1.10 200\r\n" + LENGTH + b"\r\n" + PIXELS,
    "HTTP/2 in text": b"HTTP/2 200\r\n" + LENGTH + b"\r\n" + PIXELS,
    "empty lines first": b"\r\n\r\n" + OK + LENGTH + b"\r\n" + PIXELS,
    "rest of an earlier body first": b"ab\r\n" + OK + LENGTH + b"\r\n" + PIXELS,
    "interim responses": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    + (OK + LENGTH + b"\r\n" + PIXELS),
    "a header of 64 KiB": OK + b"X: " + b"a" * 65_536 + b"\r\n" + LENGTH + b"\r\n" + PIXELS,
    "500 headers": OK + b"".join(b"X-%d: y\r\n" % i for i in range(MAX_HEADER_LINES - 1)) + LENGTH + b"\r\n" + PIXELS,
}

UNTIL_CLOSE = {
    "no length": OK + b"\r\n" + PIXELS,
    "no header": b"HTTP/1.1 200 OK\r\n\r\n" + PIXELS,
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\n\r\n" + PIXELS,
    "HTTP/1.0 that says chunked and isn't": b"HTTP/1.0 200 OK\r\n" + CHUNKED + b"\r\n" + PIXELS,
    "a length that is no number": OK + b"Content-Length: many\r\n\r\n" + PIXELS,
    "a negative length": OK + b"Content-Length: -18\r\n\r\n" + PIXELS,
    "a length beyond all numbers": OK + b"Content-Length: " + b"9" * 4000 + b"\r\n\r\n" + PIXELS,
    "an unknown transfer coding": OK + b"Transfer-Encoding: none\r\n\r\n" + PIXELS,
}


@pytest.mark.parametrize("octets", FRAMED.values(), ids=FRAMED)
def test_careless_framing_is_read_as_browsers_do(octets: bytes) -> None:
    parser, body = parsed(octets)
    assert (parser.status, body) == (200, PIXELS)
    assert parser.complete


@pytest.mark.parametrize("octets", UNTIL_CLOSE.values(), ids=UNTIL_CLOSE)
def test_body_without_length_ends_with_the_connection(octets: bytes) -> None:
    parser, body = parsed(octets)
    assert body == PIXELS
    assert not parser.complete
    parser.feed_eof()
    assert parser.complete
    assert not parser.is_reusable


@given(st.sampled_from([*FRAMED.values(), *UNTIL_CLOSE.values()]), st.lists(st.integers(0, 700), max_size=8), st.data())
def test_cutting_a_response_anywhere_changes_nothing(octets: bytes, cuts: list[int], data: st.DataObject) -> None:
    cuts = sorted({*cuts, data.draw(st.integers(0, len(octets)))})
    whole, body = parsed(octets, ended=True)
    parser = ResponseParser()
    pieces = [parser.feed(octets[start:end]) for start, end in zip([0, *cuts], [*cuts, len(octets)], strict=True)]
    parser.feed_eof()
    assert b"".join(pieces) == body
    assert parser.headers == whole.headers


def test_response_may_arrive_byte_by_byte() -> None:
    for octets in (octets for octets in FRAMED.values() if len(octets) < 1000):
        parser = ResponseParser()
        assert b"".join(parser.feed(octets[at : at + 1]) for at in range(len(octets))) == PIXELS
        assert parser.complete


def test_headers_are_kept_whatever_stands_between_them() -> None:
    parser, _ = parsed(FRAMED["folded header"])
    assert parser.headers["x"] == "a b c: d"
    parser, _ = parsed(OK + b"A : 1\r\njunk\r\nB:2 \r\nB: 3\r\n\r\n")
    assert list(parser.headers.items()) == [("A", "1"), ("B", "2"), ("B", "3")]


@pytest.mark.parametrize(
    "octets",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x16\x03\x01\x00\x00\x00\x00\x00\x00",
        b"<html><body>HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 two hundred\r\n",
        b"HTTP/1.1 20\r\n",
        b"HTTP/1.1 2000\r\n",
        b"HTTP/1.1\r\n",
        OK + b"X: \0\r\n\r\n",
        OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        OK + b"Content-Length: 1, 2\r\n\r\nab",
        OK + CHUNKED + b"\r\nxyz\r\n",
        OK + CHUNKED + b"\r\n-1\r\n",
        OK + CHUNKED + b"\r\n0x5\r\n",
        OK + CHUNKED + b"\r\n\r\n",
        OK + CHUNKED + b"\r\n" + b"f" * 16 + b"\r\n",
        OK + CHUNKED + b"\r\n3\r\nabcd\r\n",
    ],
)
def test_what_browsers_refuse_is_malformed(octets: bytes) -> None:
    with pytest.raises(MalformedResponse):
        parsed(octets)


ENDLESS = {
    "headers": (OK, b"X: y\r\n"),
    "one header": (OK, b"a" * 1000),
    "large headers": (OK, b"X: " + b"a" * 8000 + b"\r\n"),
    "folds": (OK, b" a\r\n"),
    "garbage": (b"", b"\0" * 1000),
    "a status line": (b"HTTP/1.1 200 ", b"a" * 1000),
    "empty lines": (b"", b"\r\n" * 500),
    "interim responses": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "interim responses with headers": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: " + b"a" * 4000 + b"\r\n\r\n"),
    "chunk extensions": (OK + CHUNKED + b"\r\n1;", b"a" * 1000),
    "chunk sizes": (OK + CHUNKED + b"\r\n", b"0" * 1000),
    "trailers": (OK + CHUNKED + b"\r\n0\r\n", b"X: y\r\n"),
    "chunks of a byte": (OK + CHUNKED + b"\r\n", b"1\r\na\r\n" * 1000),
    "chunks of a byte with extensions": (OK + CHUNKED + b"\r\n", b"1;" + b"a" * 8000 + b"\r\na\r\n"),
}


@pytest.mark.parametrize(("first", "block"), ENDLESS.values(), ids=ENDLESS)
def test_endless_framing_is_cut_off(first: bytes, block: bytes) -> None:
    parser = ResponseParser()
    fed, kept = len(first), len(parser.feed(first))
    with pytest.raises(MalformedResponse):  # noqa: PT012 - which of the feeds raises is not known
        while fed < 4 * FREE_FRAMING:
            fed += len(block)
            kept += len(parser.feed(block))
    assert fed - 2 * kept <= max(FREE_FRAMING, MAX_HEAD_BYTES * MAX_INTERIM) + MAX_CHUNK_LINE + len(block)


def test_image_in_chunks_of_a_byte_is_read() -> None:
    image = bytes(range(256)) * 400
    octets = OK + CHUNKED + b"\r\n" + b"".join(b"1\r\n%c\r\n" % byte for byte in image) + b"0\r\n\r\n"
    parser, body = parsed(octets)
    assert body == image
    assert parser.complete


@pytest.mark.parametrize("status", [204, 205, 304])
def test_status_without_body_is_complete_at_once(status: int) -> None:
    parser, body = parsed(b"HTTP/1.1 %d Whatever\r\nContent-Length: 5\r\n\r\n" % status)
    assert parser.complete
    assert body == b""


@pytest.mark.parametrize(
    "octets",
    [b"", b"HT", b"HTTP/1.1 2", OK, OK + b"X: y\r\n", OK + LENGTH + b"\r\npix", OK + CHUNKED + b"\r\n5\r\nabc"],
)
def test_connection_closed_early_leaves_an_incomplete_response(octets: bytes) -> None:
    with pytest.raises(IncompleteResponse):
        parsed(octets, ended=True)


@pytest.mark.parametrize("octets", [b"220 ftp", b"\x16\x03\x01"])
def test_short_garbage_is_malformed_rather_than_incomplete(octets: bytes) -> None:
    with pytest.raises(MalformedResponse):
        parsed(octets, ended=True)


def test_last_chunk_without_its_empty_line_is_the_end() -> None:
    parser, body = parsed(OK + CHUNKED + b"\r\n3\r\nabc\r\n0\r\n", ended=True)
    assert parser.complete
    assert body == b"abc"


def test_status_is_known_before_the_headers() -> None:
    parser = ResponseParser()
    parser.feed(OK)
    assert parser.status == 200
    with pytest.raises(MalformedResponse):
        parser.feed(b"X: " + b"a" * MAX_HEAD_BYTES)
    assert parser.status == 200


@pytest.mark.parametrize(
    ("octets", "reusable"),
    [
        (OK + LENGTH + b"\r\n" + PIXELS, True),
        (OK + CHUNKED + b"\r\n" + CHUNKS, True),
        (OK + LENGTH + b"Connection: X, Close\r\n\r\n" + PIXELS, False),
        (OK + LENGTH + b"\r\n" + PIXELS + b"more", False),
        (OK + CHUNKED + b"\r\n" + CHUNKS + b"more", False),
        (b"HTTP/1.0 200 OK\r\n" + LENGTH + b"\r\n" + PIXELS, False),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n" + LENGTH + b"\r\n" + PIXELS, True),
    ],
)
def test_connection_is_reused_after_a_clean_end_only(octets: bytes, reusable: bool) -> None:
    parser, _ = parsed(octets)
    assert parser.is_reusable is reusable
