"""The guarded client against real servers on loopback: friendly, careless and hostile ones."""

import asyncio
import gzip
import socket
import ssl
import traceback
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from infra.outbound.addresses import AllowList
from infra.outbound.budget import TimeBudget
from infra.outbound.client import (
    MAX_ANSWER_BYTES,
    MAX_REDIRECTS,
    OutboundClient,
    Response,
)
from infra.outbound.names import MAX_ADDRESSES, Names
from infra.outbound.reasons import ForbiddenUrl, OutboundError, Reason
from tests.support import http_site
from tests.support.http_site import Answer, Heard, drips, message, says, serving, serving_bytes, writes

LOOPBACK = AllowList.parse("127.0.0.1")
NOTHING = AllowList()
MIB = 1024 * 1024

# Self-signed, for localhost, images.test and 127.0.0.1, until 2126. Trusted by nobody but these tests.
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBuDCCAV6gAwIBAgIUKxaMbiAWGUrf2PsAiCcTE/jld04wCgYIKoZIzj0EAwIw
HDEaMBgGA1UEAwwRc2hyaW5rc3RyZWFtIHRlc3QwIBcNMjYxMTIxMTEwNzM0WhgP
MjEyNjEwMjgxMTA3MzRaMBwxGjAYBgNVBAMMEXNocmlua3N0cmVhbSB0ZXN0MFkw
EwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE1KV69dZrdUG5xVA8OR6tstAW2I57UjiM
2rh/pO3UACQhyySS9DUUvqChHSfOJAjNvevSRUsMI8HUEO4I5TAH86N8MHowHQYD
VR0OBBYEFDra23Y3tHBxFKQIu54DbvZvboryMB8GA1UdIwQYMBaAFDra23Y3tHBx
FKQIu54DbvZvboryMCcGA1UdEQQgMB6CCWxvY2FsaG9zdIILaW1hZ2VzLnRlc3SH
BH8AAAEwDwYDVR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDAgNIADBFAiAG74QrttzV
ZwYWyIhGEhts+iIv09Qkd7k9K+ew5xZ02QIhAJRMdz8F9IF5J1CUwOBC+eutgM/i
FOmVoEnUUsagxj0Z
-----END CERTIFICATE-----
"""
KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgIa1G5jPUT1kPWSNU
t30sIUjrpvEMVKfWD5LKqVME3MmhRANCAATUpXr11mt1QbnFUDw5Hq2y0BbYjntS
OIzauH+k7dQAJCHLJJL0NRS+oKEdJ84kCM2969JFSwwjwdQQ7gjlMAfz
-----END PRIVATE KEY-----
"""


async def get(
    url: str, allow: AllowList = LOOPBACK, *, max_bytes: int = MIB, timeout: float = 10, **options: Any
) -> Response:
    async with OutboundClient(allow, **options) as client:
        return await client.get(url, max_bytes=max_bytes, budget=TimeBudget(timeout))


async def refusal(url: str, allow: AllowList = LOOPBACK, **options: Any) -> OutboundError:
    with pytest.raises(OutboundError) as caught:
        await get(url, allow, **options)
    return caught.value


# --- plain requests ---


async def test_image_is_fetched() -> None:
    async with serving(says(200, b"pixels", {"Content-Type": "image/jpeg"})) as site:
        response = await get(site.url("/a.jpg"))
        assert response.status == 200
        assert response.body == b"pixels"
        assert response.headers["content-type"] == "image/jpeg"
        assert str(response.url) == site.url("/a.jpg")


async def test_request_names_user_agent_and_asks_for_identity_encoding() -> None:
    async with serving(says()) as site:
        await get(site.url())
        headers = site.heard[0].headers
        assert headers["user-agent"].startswith("shrinkstream/")
        assert headers["accept-encoding"] == "identity"
        assert headers["host"] == f"127.0.0.1:{site.port}"
        assert "referer" not in headers
        assert "authorization" not in headers


@pytest.mark.parametrize(
    ("given", "requested"),
    [
        ("/a%2Fb%20c+d/ü x.jpg?q=1,2&t=%2C+%26&u=é", "/a%2Fb%20c+d/%C3%BC%20x.jpg?q=1,2&t=%2C+%26&u=%C3%A9"),
        ("/w_1,h_2/%zz.jpg", "/w_1,h_2/%25zz.jpg"),
        ("?url=http%3A%2F%2Fb.test%2Fy", "/?url=http%3A%2F%2Fb.test%2Fy"),
    ],
)
async def test_url_on_the_wire_is_encoded_exactly_once(given: str, requested: str) -> None:
    async with serving(says()) as site:
        await get(site.url(given))
        assert site.heard[0].target == requested


async def test_no_cookie_outlives_its_chain() -> None:
    async with serving(says(headers={"Set-Cookie": "who=me; Path=/"})) as site, OutboundClient(LOOPBACK) as client:
        for _ in range(2):
            await client.get(site.url(), max_bytes=1, budget=TimeBudget(10))
        assert [("cookie" in heard.headers) for heard in site.heard] == [False, False]


async def test_proxies_and_netrc_of_the_environment_are_ignored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")

    async with serving(says(200, b"pixels")) as site:
        assert (await get(site.url())).body == b"pixels"
        assert "authorization" not in site.heard[0].headers


async def test_connections_to_one_host_are_bounded() -> None:
    open_now = 0
    most = 0

    async def answer(_: Heard, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await asyncio.sleep(0.02)
        open_now -= 1
        writer.write(message())

    async with serving(answer) as site, OutboundClient(LOOPBACK, limit_per_host=3) as client:
        await asyncio.gather(*(client.get(site.url(), max_bytes=1, budget=TimeBudget(10)) for _ in range(12)))
        assert len(site.heard) == 12
        assert most == 3


@pytest.mark.slow
async def test_waiting_for_a_connection_costs_no_budget() -> None:
    release = asyncio.Event()
    asked = asyncio.Event()

    async def answer(_: Heard, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await release.wait()
        writer.write(message())

    async with serving(answer) as site, OutboundClient(LOOPBACK, limit_per_host=1) as client:
        first = asyncio.create_task(client.get(site.url(), max_bytes=1, budget=TimeBudget(50)))
        await asked.wait()
        second = asyncio.create_task(client.get(site.url(), max_bytes=1, budget=TimeBudget(0.5)))
        done, _ = await asyncio.wait([second], timeout=1)
        assert not done
        release.set()
        await asyncio.gather(first, second)


# --- the allow-list, addresses and names ---


async def test_allowed_address_is_fetched_on_every_port() -> None:
    async with serving(says(200, b"one")) as one, serving(says(200, b"two")) as two:
        allow = AllowList.parse("127.0.0.1")
        assert (await get(one.url(), allow)).body == b"one"
        assert (await get(two.url(), allow)).body == b"two"


async def test_allowed_address_with_port_is_fetched_there_only() -> None:
    async with serving(says(200, b"one")) as one, serving(says(200, b"two")) as two:
        allow = AllowList.parse(f"127.0.0.1:{one.port}")
        assert (await get(one.url(), allow)).body == b"one"
        assert (await refusal(two.url(), allow)).reason == Reason.FORBIDDEN_ADDRESS
        assert (await refusal(two.url(host="localhost"), allow)).reason == Reason.FORBIDDEN_PORT
        assert two.connections == 0


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0X7F.1",
        "0177.0.0.1",
        "127.0.0.1.",
        "0",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "\uff11\uff12\uff17.0.0.1",
        "127\u30020\u30020\u30021",
        "\u2460\u2461\u2466.0.0.1",
    ],
)
async def test_no_spelling_of_loopback_is_connected_to(host: str) -> None:
    async with serving(says()) as site:
        error = await refusal(site.url(host=host), NOTHING)
        assert isinstance(error, ForbiddenUrl)
        assert error.reason == Reason.FORBIDDEN_ADDRESS
        assert site.connections == 0


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.0.0.1."])
async def test_allowed_address_may_be_spelled_in_any_way(host: str) -> None:
    async with serving(says(200, b"pixels")) as site:
        assert (await get(site.url(host=host))).body == b"pixels"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "169.254.169.254",
        "168.63.129.16",
        "100.64.0.1",
        "::1",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "fd00:ec2::254",
        "fe80::1%2",
        "0x7f.1",
        "2130706433",
        "not-an-address",
    ],
)
async def test_name_of_forbidden_address_is_rejected(address: str) -> None:
    # the port is allowed, so that only the address can be the reason
    async with serving(says()) as site:
        allow = AllowList.parse(f"192.0.2.1:{site.port}")
        error = await refusal(site.url(host="images.test"), allow, look_up=http_site.Names(images_test=[[address]]))
        assert error.reason == Reason.DNS_FAILED
        assert not error.retryable
        assert address not in error.detail
        assert site.connections == 0


async def test_name_rebound_after_the_check_is_rejected() -> None:
    names = http_site.Names(rebind_test=[["1.1.1.1"], ["127.0.0.1"]])
    async with serving(says()) as site:
        checked = names("rebind.test")  # what a check before the connection would see
        assert checked == ["1.1.1.1"]
        allow = AllowList.parse(f"192.0.2.1:{site.port}")
        error = await refusal(site.url(host="rebind.test"), allow, look_up=names)
        assert error.reason == Reason.DNS_FAILED
        assert names.lookups == ["rebind.test", "rebind.test"]
        assert site.connections == 0


async def test_name_is_checked_again_for_every_request() -> None:
    names = http_site.Names(rebind_test=[["127.0.0.1"], ["169.254.169.254"]])
    async with (
        serving(says(200, b"pixels")) as site,
        OutboundClient(LOOPBACK, look_up=names, dns_cache_seconds=0) as client,
    ):
        url = site.url(host="rebind.test")
        assert (await client.get(url, max_bytes=10, budget=TimeBudget(10))).body == b"pixels"
        with pytest.raises(OutboundError) as caught:
            await client.get(url, max_bytes=10, budget=TimeBudget(10))
        assert caught.value.reason == Reason.DNS_FAILED
        assert len(names.lookups) == 2


async def test_only_allowed_addresses_of_a_name_are_connected_to() -> None:
    names = http_site.Names(mixed_test=[["169.254.169.254", "::1", "10.0.0.1", "127.0.0.1"]])
    async with serving(says(200, b"pixels")) as site:
        assert (await get(site.url(host="mixed.test"), look_up=names)).body == b"pixels"


async def test_allowed_name_is_trusted_at_every_address() -> None:
    names = http_site.Names(minio_test=[["::1", "127.0.0.1"]])  # nobody listens on ::1
    async with serving(says(200, b"pixels")) as site:
        allow = AllowList.parse(f"minio.test:{site.port}")
        assert (await get(site.url(host="MINIO.test."), allow, look_up=names)).body == b"pixels"


async def test_allowed_name_does_not_allow_names_sharing_its_address() -> None:
    names = http_site.Names(good_test=[["127.0.0.1"]], evil_test=[["127.0.0.1"]])

    async def answer(heard: Heard, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.01)  # let the two kinds of requests overlap
        writer.write(message(200, heard.headers["host"].encode(), {"Connection": "keep-alive"}))

    async with serving(answer) as site:
        allow = AllowList.parse(f"good.test, 192.0.2.1:{site.port}")
        async with OutboundClient(allow, look_up=names) as client:
            outcomes = await asyncio.gather(
                *(
                    client.get(site.url(host=host), max_bytes=100, budget=TimeBudget(10))
                    for _ in range(20)
                    for host in ("good.test", "evil.test")
                ),
                return_exceptions=True,
            )
        good, evil = outcomes[::2], outcomes[1::2]
        assert all(isinstance(outcome, Response) for outcome in good)
        assert all(isinstance(outcome, OutboundError) for outcome in evil)
        assert {heard.headers["host"] for heard in site.heard} == {f"good.test:{site.port}"}


async def test_localhost_is_rejected_unless_allowed() -> None:
    async with serving(says(200, b"pixels")) as site:
        url = site.url(host="localhost")
        assert (await refusal(url, AllowList.parse(f"192.0.2.1:{site.port}"))).reason == Reason.DNS_FAILED
        assert site.connections == 0
        assert (await get(url, AllowList.parse("127.0.0.1"))).body == b"pixels"
        assert (await get(url, AllowList.parse(f"localhost:{site.port}"))).body == b"pixels"


async def test_dns_answer_with_thousands_of_addresses_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"10.0.{i // 256}.{i % 256}", 80)) for i in range(4000)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: many)

    assert len(await Names().resolve("many.test", "", TimeBudget(10))) == MAX_ADDRESSES


@pytest.mark.parametrize(("code", "retryable"), [(socket.EAI_AGAIN, True), (socket.EAI_NONAME, False)])
async def test_unresolvable_name_is_transient_or_permanent_by_cause(code: int, retryable: bool) -> None:
    def broken(_: str) -> Sequence[str]:
        raise socket.gaierror(code, "no")

    error = await refusal("http://images.test/", look_up=broken)
    assert error.reason == Reason.DNS_FAILED
    assert error.retryable is retryable


async def test_private_name_fails_as_unknown_name_does() -> None:
    def look_up(name: str) -> Sequence[str]:
        if name == "unknown.test":
            raise socket.gaierror(socket.EAI_NONAME, "no")
        return ["10.0.0.7"]

    unknown, private = [await refusal(f"http://{name}.test/", look_up=look_up) for name in ("unknown", "private")]
    assert private.reason == unknown.reason
    assert private.detail.replace("private", "unknown") == unknown.detail
    assert type(private) is type(unknown)
    assert private.retryable is unknown.retryable


async def test_closed_port_is_a_transient_error() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        error = await refusal(f"http://127.0.0.1:{unused.getsockname()[1]}/")
    assert error.reason == Reason.CONNECT_FAILED
    assert error.retryable


async def test_forbidden_address_does_not_hide_a_transient_error() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        names = http_site.Names(mixed_test=[["10.0.0.1", "127.0.0.1"]])
        error = await refusal(f"http://mixed.test:{unused.getsockname()[1]}/", look_up=names)
    assert error.reason == Reason.CONNECT_FAILED
    assert error.retryable


# --- redirects ---


def redirects(*, hops: int) -> Answer:
    """/0 leads to /1 and so on; the last one answers."""

    async def answer(heard: Heard, writer: asyncio.StreamWriter) -> None:
        hop = int(heard.target.strip("/"))
        status = (301, 302, 303, 307, 308)[hop % 5]
        writer.write(message(200, b"pixels") if hop == hops else message(status, b"moved", {"Location": str(hop + 1)}))

    return answer


async def test_redirects_are_followed_to_the_limit() -> None:
    async with serving(redirects(hops=MAX_REDIRECTS)) as site:
        response = await get(site.url("/0"))
        assert response.body == b"pixels"
        assert str(response.url) == site.url(f"/{MAX_REDIRECTS}")


async def test_redirect_over_the_limit_is_rejected() -> None:
    async with serving(redirects(hops=MAX_REDIRECTS + 1)) as site:
        error = await refusal(site.url("/0"))
        assert error.reason == Reason.TOO_MANY_REDIRECTS
        assert len(site.heard) == MAX_REDIRECTS + 1


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://169.254.169.254/latest/meta-data/", Reason.FORBIDDEN_ADDRESS),
        ("//169.254.169.254/", Reason.FORBIDDEN_ADDRESS),
        ("http://0xa9fea9fe/", Reason.FORBIDDEN_ADDRESS),
        ("http://[::ffff:169.254.169.254]/", Reason.FORBIDDEN_ADDRESS),
        ("http://metadata.test/", Reason.DNS_FAILED),
        ("https://metadata.test/", Reason.DNS_FAILED),
        ("http://1.1.1.1:22/", Reason.FORBIDDEN_PORT),
        ("file:///etc/passwd", Reason.FORBIDDEN_SCHEME),
        ("ftp://images.test/", Reason.FORBIDDEN_SCHEME),
        ("http://me:secret@images.test/", Reason.BAD_URL),
        ("javascript:alert(1)", Reason.BAD_URL),
        ("http://[::1", Reason.BAD_URL),
        ("/" + "a" * 3000, Reason.BAD_URL),
        ("?", Reason.TOO_MANY_REDIRECTS),
        ("\\\\169.254.169.254\\", Reason.FORBIDDEN_ADDRESS),
        ("/\\169.254.169.254/", Reason.FORBIDDEN_ADDRESS),
        ("///169.254.169.254/", Reason.FORBIDDEN_ADDRESS),
        ("\\\\\\/169.254.169.254/", Reason.FORBIDDEN_ADDRESS),
    ],
)
async def test_redirect_to_a_forbidden_url_is_rejected(location: str, reason: Reason) -> None:
    names = http_site.Names(metadata_test=[["169.254.169.254"]])
    async with serving(says(302, headers={"Location": location})) as site:
        assert (await refusal(site.url(), look_up=names)).reason == reason


@pytest.mark.parametrize(
    ("location", "requested"),
    [
        (b"b.jpg?x=1", "/dir/b.jpg?x=1"),
        (b"../b.jpg", "/b.jpg"),
        (b"/sch%C3%B6n/a%2Fb.jpg", "/sch%C3%B6n/a%2Fb.jpg"),
        ("/schön.jpg".encode(), "/sch%C3%B6n.jpg"),
        ("/schön.jpg".encode("latin-1"), "/sch%F6n.jpg"),
        (b"/b.jpg#part", "/b.jpg"),
        (b"\\c\\b.jpg", "/c/b.jpg"),
        (b"..\\c\\..\\b.jpg?x=\\", "/b.jpg?x=%5C"),
        (b"/x/../b.jpg\r\nLocation: /x/../b.jpg", "/b.jpg"),
    ],
)
async def test_redirect_may_be_relative_and_in_raw_bytes(location: bytes, requested: str) -> None:
    async def answer(heard: Heard, writer: asyncio.StreamWriter) -> None:
        moved = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nConnection: close\r\nLocation: " + location + b"\r\n\r\n"
        writer.write(moved if heard.target == "/dir/a.jpg" else message(200, b"pixels"))

    async with serving(answer) as site:
        assert (await get(site.url("/dir/a.jpg"))).body == b"pixels"
        assert site.heard[1].target == requested


# --- statuses ---


@pytest.mark.parametrize("status", [204, 206, 300, 302, 304, 400, 401, 403, 404, 410, 416, 501])
async def test_response_without_image_has_status_in_its_reason(status: int) -> None:
    octets = f"HTTP/1.1 {status} Whatever\r\nConnection: close\r\n\r\n".encode()
    async with serving(writes(octets)) as site:
        if status == 204:
            assert (await get(site.url())).body == b""
            return
        error = await refusal(site.url())
        assert error.reason == f"fetch_http_{status}"
        assert not error.retryable


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_transient_status_carries_its_retry_after(status: int) -> None:
    async with serving(says(status, headers={"Retry-After": "17"})) as site:
        error = await refusal(site.url())
        assert error.reason == f"fetch_http_{status}"
        assert error.retryable
        assert error.retry_after == 17


async def test_retry_after_date_becomes_seconds() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    async with serving(says(429, headers={"Retry-After": date})) as site:
        error = await refusal(site.url())
        assert error.retry_after is not None
        assert 60 < error.retry_after <= 100


@pytest.mark.parametrize(
    "octets",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x16\x03\x01\x00\x00\x00\x00",
        b"HTTP/1.1 two hundred\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    ],
)
async def test_response_that_is_not_http_is_an_error(octets: bytes) -> None:
    async with serving(writes(octets)) as site:
        error = await refusal(site.url())
        assert error.reason == Reason.BAD_RESPONSE
        assert not error.retryable


# --- size ---


async def test_body_is_limited_to_the_exact_byte() -> None:
    async with serving(says(200, b"a" * 1000)) as site:
        assert len((await get(site.url(), max_bytes=1000)).body) == 1000
        assert (await refusal(site.url(), max_bytes=999)).reason == Reason.TOO_LARGE


async def test_content_length_over_limit_is_rejected_before_reading() -> None:
    # no byte of a body ever comes: who waits for one sees a time-out instead
    async with serving(drips(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n", b"")) as site:
        error = await refusal(site.url())
        assert error.reason == Reason.TOO_LARGE
        assert not error.retryable


async def test_body_shorter_than_its_content_length_is_incomplete() -> None:
    async with serving(writes(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort")) as site:
        error = await refusal(site.url())
        assert error.reason == Reason.INCOMPLETE
        assert error.retryable


@pytest.mark.parametrize("connection", ["close", "keep-alive"])
async def test_bytes_beyond_the_content_length_are_ignored(connection: str) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: {connection}\r\n\r\n".encode()

    async with serving(writes(head + b"whole and more")) as site:
        assert (await get(site.url())).body == b"whole"
    async with serving(drips(head + b"whole", b" and more")) as site:
        assert (await get(site.url())).body == b"whole"


@pytest.mark.parametrize(
    ("head", "part"),
    [
        (b"Transfer-Encoding: chunked\r\n", b"4000\r\n" + b"a" * 0x4000 + b"\r\n"),
        (b"", b"a" * 0x4000),
    ],
)
async def test_endless_body_stops_at_the_limit(head: bytes, part: bytes) -> None:
    async with serving(drips(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n", part, every=0)) as site:
        assert (await refusal(site.url(), max_bytes=MIB)).reason == Reason.TOO_LARGE


async def test_truncated_chunked_body_is_incomplete() -> None:
    octets = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n5\r\nab"
    async with serving(writes(octets)) as site:
        assert (await refusal(site.url())).reason == Reason.INCOMPLETE


@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"])
async def test_reset_connection_leaves_an_incomplete_response(first: bytes) -> None:
    async def answer(_: Heard, writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        await writer.drain()
        await asyncio.sleep(0.05)
        # SO_LINGER of zero seconds: close() sends RST instead of FIN
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
        )

    async with serving(answer) as site:
        error = await refusal(site.url())
        assert error.reason == Reason.INCOMPLETE
        assert error.retryable


# --- time ---


@pytest.mark.parametrize(
    "answer",
    [
        drips(b"", b""),
        drips(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
        drips(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b"a"),
        drips(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
    ],
    ids=["silence", "headers", "body", "chunks"],
)
async def test_slow_drip_is_cut_at_the_deadline(answer: Answer) -> None:
    async with serving(answer) as site:
        error = await refusal(site.url(), timeout=0.3)
        assert error.reason == Reason.TIMEOUT
        assert error.retryable


async def test_deadline_covers_all_redirects() -> None:
    async def answer(heard: Heard, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.2)
        writer.write(message(302, headers={"Location": heard.target + "x"}))

    async with serving(answer) as site:
        assert (await refusal(site.url(), timeout=0.5)).reason == Reason.TIMEOUT


async def test_waiting_for_memory_budget_costs_no_download_time() -> None:
    sizes: list[int] = []

    async def admit(size: int) -> None:
        sizes.append(size)
        await asyncio.sleep(0.6)

    async with serving(says(200, b"pixels")) as site, OutboundClient(LOOPBACK) as client:
        response = await client.get(site.url(), max_bytes=10, budget=TimeBudget(0.5), admit=admit)
        assert response.body == b"pixels"
        assert sum(sizes) == 6


async def test_long_silence_is_cut_before_the_deadline() -> None:
    async with serving(drips(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", b"")) as site:
        error = await refusal(site.url(), timeout=25, stall_timeout=0.2)
        assert error.reason == Reason.TIMEOUT
        assert error.retryable


# --- compression ---


@pytest.mark.parametrize(
    ("encoding", "compressed"),
    [
        ("gzip", gzip.compress(b"pixels" * 1000, mtime=0)),
        ("GZIP", gzip.compress(b"pixels" * 1000, mtime=0)),
        ("x-gzip", gzip.compress(b"pixels" * 1000, mtime=0)),
        ("deflate", zlib.compress(b"pixels" * 1000)),
        ("identity", b"pixels" * 1000),
        ("", b"pixels" * 1000),
    ],
)
async def test_unrequested_compression_is_decompressed(encoding: str, compressed: bytes) -> None:
    async with serving(says(200, compressed, {"Content-Encoding": encoding})) as site:
        assert (await get(site.url())).body == b"pixels" * 1000


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "deflate, gzip", "none, br"])
async def test_unknown_encoding_is_rejected(encoding: str) -> None:
    async with serving(says(200, gzip.compress(b"pixels"), {"Content-Encoding": encoding})) as site:
        error = await refusal(site.url())
        assert error.reason == Reason.BAD_ENCODING
        assert not error.retryable


async def test_damaged_or_truncated_compressed_body_is_an_error() -> None:
    headers = {"Content-Encoding": "gzip"}
    async with serving(says(200, b"pixels", headers)) as damaged:
        assert (await refusal(damaged.url())).reason == Reason.BAD_ENCODING
    async with serving(says(200, gzip.compress(b"pixels")[:-3], headers)) as cut:
        assert (await refusal(cut.url())).reason == Reason.INCOMPLETE


@pytest.mark.slow
async def test_compression_bomb_stops_at_the_limit() -> None:
    bomb = gzip.compress(bytes(256 * MIB), compresslevel=9)
    assert len(bomb) < MIB
    async with serving(says(200, bomb, {"Content-Encoding": "gzip"})) as site:
        assert (await refusal(site.url(), max_bytes=MIB)).reason == Reason.TOO_LARGE


async def test_compressed_bytes_without_content_count_too() -> None:
    body = gzip.compress(b"") * 100
    async with serving(says(200, body, {"Content-Encoding": "gzip"})) as site:
        assert (await get(site.url(), max_bytes=len(body))).body == b""
    async with serving(says(200, body + gzip.compress(b""), {"Content-Encoding": "gzip"})) as site:
        assert (await refusal(site.url())).reason == Reason.BAD_ENCODING
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: deflate\r\n\r\n\x78\x9c"
    async with serving(drips(head, b"\0\0\0\xff\xff" * 1000, every=0)) as site:
        assert (await refusal(site.url(), max_bytes=MIB)).reason == Reason.TOO_LARGE


async def test_decompression_bomb_does_not_block_the_event_loop() -> None:
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async with serving(says(200, gzip.compress(bytes(64 * MIB)), {"Content-Encoding": "gzip"})) as site:
        turning = asyncio.create_task(turn())
        await get(site.url(), max_bytes=64 * MIB)
        turning.cancel()
    assert turns > 64 * MIB // (64 * 1024) / 2  # 64 KiB is the step


# --- TLS ---


@pytest.fixture
def server_tls(tmp_path: Path) -> ssl.SSLContext:
    pem = tmp_path / "server.pem"
    pem.write_text(KEY + CERTIFICATE)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem)
    return context


TRUSTING = ssl.create_default_context(cadata=CERTIFICATE)


async def test_self_signed_certificate_is_rejected(server_tls: ssl.SSLContext) -> None:
    async with serving(says(200, b"pixels"), server_tls) as site:
        error = await refusal(site.url(scheme="https"))
        assert error.reason == Reason.TLS_FAILED
        assert not error.retryable
        assert site.heard == []
        assert (await get(site.url(scheme="https"), tls=TRUSTING)).body == b"pixels"


async def test_http1_is_negotiated(server_tls: ssl.SSLContext) -> None:
    async def answer(_: Heard, writer: asyncio.StreamWriter) -> None:
        chosen = writer.get_extra_info("ssl_object").selected_alpn_protocol()
        writer.write(message(200, str(chosen).encode()))

    server_tls.set_alpn_protocols(["h2", "http/1.1"])
    async with serving(answer, server_tls) as site:
        assert (await get(site.url(scheme="https"), tls=TRUSTING)).body == b"http/1.1"


async def test_certificate_of_another_host_is_rejected(server_tls: ssl.SSLContext) -> None:
    names = http_site.Names(images_test=[["127.0.0.1"]], other_test=[["127.0.0.1"]])
    async with serving(says(200, b"pixels"), server_tls) as site:
        own, other = (site.url(host=host, scheme="https") for host in ("images.test", "other.test"))
        assert (await get(own, look_up=names, tls=TRUSTING)).body == b"pixels"
        assert (await refusal(other, look_up=names, tls=TRUSTING)).reason == Reason.TLS_FAILED


async def test_https_url_of_a_plain_server_is_an_error() -> None:
    # the server hears a TLS hello that has no end of line, as far as HTTP is concerned
    async with serving_bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        error = await refusal(f"https://127.0.0.1:{port}/")
        assert error.reason == Reason.TLS_FAILED
        assert not error.retryable


# --- POST ---


async def post(url: str, allow: AllowList = LOOPBACK, *, timeout: float = 10) -> Response:
    async with OutboundClient(allow) as client:
        return await client.post(
            url, b'{"a":1}', {"Content-Type": "application/json", "webhook-id": "w1"}, timeout=timeout
        )


async def test_post_carries_its_body_and_headers() -> None:
    async with serving(says(201, b"thanks")) as site:
        response = await post(site.url("/hook?key=1,2"))
        assert (response.status, response.body) == (201, b"thanks")
        (heard,) = site.heard
        assert (heard.method, heard.target, heard.body) == ("POST", "/hook?key=1,2", b'{"a":1}')
        assert heard.headers["content-type"] == "application/json"
        assert heard.headers["webhook-id"] == "w1"
        assert heard.headers["user-agent"].startswith("shrinkstream/")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 404, 410, 500])
async def test_post_follows_no_redirect_and_returns_any_status(status: int) -> None:
    async with serving(says()) as other:
        headers = {"Location": other.url(), "Retry-After": "5"}
        async with serving(says(status, b"moved", headers)) as site:
            response = await post(site.url())
            assert response.status == status
            assert response.headers["retry-after"] == "5"
            assert other.connections == 0


async def test_post_to_a_forbidden_address_is_rejected() -> None:
    async with serving(says()) as site:
        with pytest.raises(ForbiddenUrl):
            await post(site.url(), NOTHING)
        assert site.connections == 0


async def test_response_to_a_post_is_read_up_to_limit() -> None:
    sent = 0

    async def endless(_: Heard, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"a" * MIB)
            await writer.drain()
            sent += MIB
            await asyncio.sleep(0)

    async with serving(endless) as site:
        response = await post(site.url())
        assert response.status == 200
        assert response.body == b"a" * MAX_ANSWER_BYTES
    assert sent < 32 * MIB  # what the sockets' buffers hold, with room to spare


@pytest.mark.parametrize(
    "answer",
    [
        drips(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nthanks", b""),
        writes(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nthanks"),
        drips(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nthanks\r\n", b"zz\r\n"),
    ],
    ids=["stalls", "breaks off", "turns to garbage"],
)
async def test_status_of_a_post_counts_despite_broken_body(answer: Answer) -> None:
    async with serving(answer) as site:
        response = await post(site.url(), timeout=1)
        assert response.status == 200
        assert response.body == b"thanks"


async def test_silent_receiver_of_a_post_is_cut_at_deadline() -> None:
    async with serving(drips(b"", b"")) as site:
        with pytest.raises(OutboundError) as caught:
            await post(site.url(), timeout=0.3)
        assert caught.value.reason == Reason.TIMEOUT


# --- secrets ---


@pytest.mark.parametrize(
    "answer",
    [
        says(404),
        says(302, headers={"Location": "http://hunter2:hunter2@images.test/?hunter2"}),
        says(302, headers={"Location": "http://10.0.0.1/?hunter2"}),
        says(200, b"a" * 2000),
        writes(b""),
        writes(b"hunter2\r\n\r\n"),
        writes(b"HTTP/1.1 200 OK\r\nhunter2: \0\r\n\r\n"),
        writes(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort"),
        says(200, b"damaged", {"Content-Encoding": "gzip"}),
        drips(b"", b""),
    ],
)
async def test_errors_contain_neither_query_nor_server_text(answer: Answer) -> None:
    async with serving(answer) as site:
        error = await refusal(site.url("/a.jpg?token=hunter2"), max_bytes=1000, timeout=0.5)
        assert "hunter2" not in "".join(traceback.format_exception(error))
