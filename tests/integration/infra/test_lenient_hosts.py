"""Images from hosts that break the rules of HTTP as real ones do: whatever a browser shows is fetched."""

import asyncio
import gzip
import socket
import threading
import zlib
from collections.abc import Sequence
from typing import Any

import pytest

from infra.outbound.addresses import AllowList
from infra.outbound.budget import TimeBudget
from infra.outbound.client import OutboundClient, Response
from infra.outbound.cookies import MAX_COOKIES
from infra.outbound.names import THREADS_PER_ZONE
from infra.outbound.reasons import OutboundError, Reason
from infra.outbound.request_headers import RequestHeaders
from tests.support.http_site import Answer, Heard, Names, drips, message, says, serving, writes

LOOPBACK = AllowList.parse("127.0.0.1")
PIXELS = b"pixels" * 1000
LENGTH = b"Content-Length: %d\r\n" % len(PIXELS)


async def get(url: str, allow: AllowList = LOOPBACK, **options: Any) -> Response:
    async with OutboundClient(allow, **options) as client:
        return await client.get(url, max_bytes=1024 * 1024, budget=TimeBudget(10))


async def reason(url: str, **options: Any) -> str:
    with pytest.raises(OutboundError) as caught:
        await get(url, **options)
    return caught.value.reason


def answering(headers: bytes, status: bytes = b"200 OK", body: bytes = PIXELS) -> Answer:
    return writes(b"HTTP/1.1 " + status + b"\r\nContent-Type: image/jpeg\r\n" + headers + b"\r\n" + body)


# --- headers and framing ---


@pytest.mark.parametrize(
    "headers",
    [
        *(
            b"Content-Encoding: " + token + b"\r\n" + LENGTH
            for token in (
                b"base64",
                b"none",
                b"aws-chunked",
                b"image/jpeg",
                b"8bit",
                b"binary",
                b"utf-8",
                b"UTF-8, identity",
                b"compress",
                b"chunked",
                b'"gzip"',
                b", ,",
            )
        ),
        b"Content-Security-Policy: " + b"x" * 9_000 + b"\r\n" + LENGTH,
        b"Link: " + b"x" * 60_000 + b"\r\n" + LENGTH,
        b"".join(b"X-H%d: %d\r\n" % (number, number) for number in range(480)) + LENGTH,
        b"X-XSS-Protection=1;\r\n" + LENGTH,
        b"X-Cache : HIT\r\n" + LENGTH,
        b"X Powered By: PHP\r\n" + LENGTH,
        LENGTH + LENGTH,
        b"Content-Length: 6000, 6000\r\n",
        b"Transfer-Encoding: identity\r\n" + LENGTH,
        b"Content-Length: unknown\r\n",
    ],
)
async def test_image_behind_odd_headers_is_fetched(headers: bytes) -> None:
    async with serving(answering(headers)) as site:
        assert (await get(site.url())).body == PIXELS


async def test_chunked_body_wins_over_its_length() -> None:
    chunks = b"1770\r\n" + PIXELS + b"\r\n0\r\n\r\n"
    async with serving(answering(b"Transfer-Encoding: chunked\r\nContent-Length: 10\r\n", body=chunks)) as site:
        assert (await get(site.url())).body == PIXELS


async def test_unknown_encoding_token_leaves_a_known_one_valid() -> None:
    packed = gzip.compress(PIXELS)
    async with serving(answering(b"Content-Encoding: aws-chunked, gzip\r\n", body=packed)) as site:
        assert (await get(site.url())).body == PIXELS


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
async def test_length_before_compression_is_accepted(pack: Any) -> None:
    encoding = b"gzip" if pack is gzip.compress else b"deflate"
    async with serving(answering(b"Content-Encoding: " + encoding + b"\r\n" + LENGTH, body=pack(PIXELS))) as site:
        assert (await get(site.url())).body == PIXELS
    wrong = b"Content-Encoding: " + encoding + b"\r\nContent-Length: 6001\r\n"
    async with serving(answering(wrong, body=pack(PIXELS))) as site:
        assert await reason(site.url()) == Reason.INCOMPLETE


@pytest.mark.parametrize(
    ("content_range", "result"),
    [
        (b"bytes 0-5999/6000", None),
        (b"Bytes  0-5999/6000", None),
        (b"bytes 0-5999/6001", "fetch_http_206"),
        (b"bytes 1-5999/6000", "fetch_http_206"),
        (b"bytes 0-5999/*", "fetch_http_206"),
        (b"", "fetch_http_206"),
    ],
)
async def test_partial_content_that_is_whole_is_fetched(content_range: bytes, result: str | None) -> None:
    headers = LENGTH + b"Content-Range: " + content_range + b"\r\n"
    async with serving(answering(headers, b"206 Partial Content")) as site:
        if result is None:
            assert (await get(site.url())).body == PIXELS
        else:
            assert await reason(site.url()) == result


async def test_redirect_without_location_may_carry_an_image() -> None:
    async with serving(answering(LENGTH, b"302 Found")) as site:
        assert (await get(site.url())).body == PIXELS
    async with serving(says(302, b"<html>", {"Content-Type": "text/html"})) as site:
        assert await reason(site.url()) == "fetch_http_302"


async def test_redirects_to_different_places_are_refused() -> None:
    async with serving(answering(b"Location: /a\r\nLocation: /b\r\n", b"302 Found", b"")) as site:
        assert await reason(site.url()) == Reason.BAD_RESPONSE


@pytest.mark.parametrize(
    ("first", "block"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n" * 10_000),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"a" * 65_536),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 1000),
    ],
    ids=["interim responses", "chunks of a byte", "chunk extension", "headers"],
)
async def test_endless_framing_is_cut_off_before_the_deadline(first: bytes, block: bytes) -> None:
    async with serving(drips(first, block, every=0)) as site:
        assert await reason(site.url()) == Reason.BAD_RESPONSE


async def test_gzip_members_without_content_are_cut_off() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n"
    async with serving(drips(head, gzip.compress(b"") * 1000, every=0)) as site:
        assert await reason(site.url()) == Reason.BAD_ENCODING


# --- connections ---


async def test_connection_is_kept_for_the_next_image() -> None:
    connections = 0

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        for _ in range(3):  # then it hangs up, as servers do after a while
            await reader.readuntil(b"\r\n\r\n")
            writer.write(message(200, b"pixels", {"Connection": "keep-alive"}))
        writer.close()

    async with await asyncio.start_server(converse, "127.0.0.1", 0) as server, OutboundClient(LOOPBACK) as client:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        for _ in range(7):
            assert (await client.get(url, max_bytes=6, budget=TimeBudget(10))).body == b"pixels"
    assert connections == 3


async def test_request_is_repeated_when_a_kept_connection_was_closed() -> None:
    heard = 0

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal heard
        await reader.readuntil(b"\r\n\r\n")
        writer.write(message(200, b"pixels", {"Connection": "keep-alive"}))
        await reader.readuntil(b"\r\n\r\n")  # heard, and not answered
        heard += 1
        writer.close()

    async with await asyncio.start_server(converse, "127.0.0.1", 0) as server, OutboundClient(LOOPBACK) as client:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        for _ in range(2):
            assert (await client.post(url, b"", {}, timeout=10)).status == 200
    assert heard == 1


async def test_silence_on_a_kept_connection_is_cut() -> None:
    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(message(200, b"pixels", {"Connection": "keep-alive"}))
        await reader.read()  # until the client gives up
        writer.close()

    async with (
        await asyncio.start_server(converse, "127.0.0.1", 0) as server,
        OutboundClient(LOOPBACK, stall_timeout=0.2) as client,
    ):
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        budget = TimeBudget(50)
        assert (await client.get(url, max_bytes=6, budget=budget)).body == b"pixels"
        with pytest.raises(OutboundError) as caught:
            await client.get(url, max_bytes=6, budget=budget)
        assert caught.value.reason == Reason.TIMEOUT
        assert budget.remaining > 0


async def test_address_that_does_not_answer_delays_a_name_little() -> None:
    with socket.socket() as full:  # a listener whose backlog is full drops connections, as a dead address does
        full.bind(("127.0.0.2", 0))
        port = full.getsockname()[1]
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.2", port))

        async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(message(200, b"pixels"))
            writer.close()

        names = Names(images_test=[["127.0.0.2", "127.0.0.1"]])
        allow = AllowList.parse("127.0.0.0/8")
        async with await asyncio.start_server(converse, "127.0.0.1", port):
            response = await get(f"http://images.test:{port}/", allow, look_up=names, connect_timeout=9)
        assert response.body == b"pixels"
        for filler in fillers:
            filler.close()


async def test_slow_name_server_fails_no_image_of_another_host() -> None:
    opened = threading.Event()

    def look_up(host: str) -> Sequence[str]:
        if host.endswith(".tarpit.example"):
            opened.wait(50)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return ["127.0.0.1"]

    async with serving(says(200, b"pixels")) as site, OutboundClient(LOOPBACK, look_up=look_up) as client:
        slow = [
            asyncio.create_task(
                client.get(site.url(host=f"h{number}.tarpit.example"), max_bytes=10, budget=TimeBudget(50))
            )
            for number in range(10 * THREADS_PER_ZONE)
        ]
        await asyncio.sleep(0)
        good = await client.get(site.url(host="good.example"), max_bytes=10, budget=TimeBudget(10))
        assert good.body == b"pixels"
        opened.set()
        results = await asyncio.gather(*slow, return_exceptions=True)
    assert {getattr(result, "reason", None) for result in results} == {str(Reason.DNS_FAILED)}


# --- cookies ---


def cookie_gate(cookie: str, wanted: str, path: str = "/b.jpg", location: str | None = None) -> Answer:
    """/a.jpg sets a cookie and redirects to ``path``, which wants it back."""

    async def answer(heard: Heard, writer: asyncio.StreamWriter) -> None:
        if heard.target != path or "cookie" not in heard.headers:
            writer.write(message(302, headers={"Set-Cookie": cookie, "Location": location or path}))
        else:
            writer.write(message(200 if heard.headers["cookie"] == wanted else 403, b"pixels"))

    return answer


@pytest.mark.parametrize("path", ["/a.jpg", "/b.jpg"])
@pytest.mark.parametrize(
    ("cookie", "wanted"),
    [
        ("seen=1; Path=/", "seen=1"),
        ("seen=1", "seen=1"),
        ("seen=1; Domain=images.test; Path=/; HttpOnly; SameSite=Lax; Max-Age=60", "seen=1"),
        ("t=a=b/c+d%20e; path=/", "t=a=b/c+d%20e"),
        ('q="x y"; path=/', 'q="x y"'),
        ("seen=1; Domain=.IMAGES.test; Expires=Fri, 01 Jan 2100 00:00:00 GMT", "seen=1"),
        ("seen=1; expires=never; max-age=x", "seen=1"),
        ("seen", "seen"),
    ],
)
async def test_cookie_is_sent_within_its_chain(cookie: str, wanted: str, path: str) -> None:
    async with serving(cookie_gate(cookie, wanted, path)) as site:
        url = site.url(host="images.test")
        assert (await get(url, look_up=Names(images_test=[["127.0.0.1"]]))).body == b"pixels"


async def test_cookie_works_at_an_ip_address() -> None:
    async with serving(cookie_gate("seen=1; Path=/", "seen=1")) as site:
        assert (await get(site.url())).body == b"pixels"


@pytest.mark.parametrize(
    "cookie",
    ["a=1; Path=/", "a=1; Path=/; Domain=one.test", "a=1; Path=/; Domain=two.test", "a=1; Path=/; Domain=test"],
)
async def test_cookie_goes_to_no_other_host(cookie: str) -> None:
    names = Names(one_test=[["127.0.0.1"]], two_test=[["127.0.0.1"]])
    async with serving(says(200, b"pixels")) as other:
        headers = {"Set-Cookie": cookie, "Location": other.url(host="two.test")}
        async with serving(says(302, headers=headers)) as site:
            assert (await get(site.url(host="one.test"), look_up=names)).body == b"pixels"
        assert "cookie" not in other.heard[0].headers


@pytest.mark.parametrize(
    "cookie",
    [
        "a=1; Path=/other",
        "a=1; Secure; Path=/",
        "a=1; Max-Age=0; Path=/",
        "a=1; Expires=Thu, 01-Jan-1970 00:00:00 GMT",
        "a=\x011; Path=/",
    ],
)
async def test_cookie_keeps_its_path_scheme_and_age(cookie: str) -> None:
    names = Names(images_test=[["127.0.0.1"]])

    async def answer(heard: Heard, writer: asyncio.StreamWriter) -> None:
        moved = message(302, headers={"Set-Cookie": cookie, "Location": "/b.jpg"})
        writer.write(moved if heard.target == "/a.jpg" else message(200, b"pixels"))

    async with serving(answer) as site:
        await get(site.url(host="images.test"), look_up=names)
        assert "cookie" not in site.heard[1].headers


async def test_cookies_of_a_chain_are_bounded() -> None:
    async def answer(heard: Heard, writer: asyncio.StreamWriter) -> None:
        hop = int(heard.target.strip("/"))
        lines = "".join(f"Set-Cookie: c{hop}-{number}={'x' * 100}\r\n" for number in range(100))
        writer.write(f"HTTP/1.1 302 Found\r\nLocation: /{hop + 1}\r\n{lines}Content-Length: 0\r\n\r\n".encode())

    async with serving(answer) as site:
        assert await reason(site.url("/0")) == Reason.TOO_MANY_REDIRECTS
        assert site.heard[-1].headers["cookie"].count("=") == MAX_COOKIES


# --- headers that a shop wants ---


async def test_headers_of_a_host_are_sent_to_it_alone() -> None:
    names = Names(www_shop_test=[["127.0.0.1"]], other_test=[["127.0.0.1"]])
    headers = RequestHeaders.parse(
        '{".shop.test": {"Referer": "origin", "User-Agent": "Mozilla/5.0", "Accept": "image/*"}}'
    )
    async with serving(says(200, b"pixels")) as other:
        async with serving(says(302, headers={"Location": other.url(host="other.test")})) as shop:
            await get(shop.url(host="www.shop.test"), look_up=names, headers=headers)
            sent = shop.heard[0].headers
            assert (sent["user-agent"], sent["accept"]) == ("Mozilla/5.0", "image/*")
            assert sent["referer"] == f"http://www.shop.test:{shop.port}/"
        sent = other.heard[0].headers
        assert sent["user-agent"].startswith("shrinkstream/")
        assert "referer" not in sent
