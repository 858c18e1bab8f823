"""What may be requested, by the text of the URL and by the address; and the pure parts of reading an answer."""

import gzip
import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from infra.outbound.addresses import AllowList, is_public
from infra.outbound.client import MAX_RETRY_AFTER, parse_retry_after
from infra.outbound.inflate import Inflater
from infra.outbound.reasons import ForbiddenUrl, Reason
from infra.outbound.urls import MAX_URL_LENGTH, check_url

NOTHING = AllowList()

EMBEDDINGS = {
    "mapped": "::ffff:0:0",
    "translated": "::ffff:0:0:0",
    "compatible": "::",
    "NAT64": "64:ff9b::",
    "local NAT64": "64:ff9b:1::",
}


def refusal(url: str, allow: AllowList = NOTHING) -> ForbiddenUrl:
    with pytest.raises(ForbiddenUrl) as caught:
        check_url(url, allow)
    return caught.value


# --- addresses ---


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",
        "100.100.100.200",
        "127.0.0.1",
        "168.63.129.16",
        "169.254.169.254",
        "172.31.255.255",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.0.1",
        "198.19.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "::ffff:0:7f00:1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::a00:1",
        "100::1",
        "2001::1",
        "2001:2::1",
        "2001:10::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fec0::1",
        "ff02::1",
        "ff0e::1",
    ],
)
def test_an_address_of_a_special_range_is_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "168.63.129.15",
        "172.15.255.255",
        "172.32.0.0",
        "223.255.255.255",
        "2001:200::1",
        "2001:4860:4860::8888",
        "2003::1",
        "2606:4700::1111",
        "2a00:1450::1",
    ],
)
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(ip_address(address))


@given(st.ip_addresses(v=4))
def test_public_ipv4_address_is_global_for_standard_library(address: IPv4Address) -> None:
    if is_public(address):
        assert address.is_global
        assert not any((address.is_multicast, address.is_reserved, address.is_link_local))


# Half of the addresses are drawn from global unicast, where a random one is most likely to be public.
@given(st.ip_addresses(v=6) | st.ip_addresses(network="2000::/3"))
def test_public_ipv6_address_is_global_for_standard_library(address: IPv6Address) -> None:
    if is_public(address):
        assert address.is_global
        assert not any((address.is_multicast, address.is_reserved, address.is_site_local))
        assert address.ipv4_mapped is None
        assert address.sixtofour is None
        assert address.teredo is None


@given(st.ip_addresses(v=4), st.sampled_from(sorted(EMBEDDINGS)))
def test_ipv4_inside_ipv6_is_never_public(address: IPv4Address, embedding: str) -> None:
    assert not is_public(IPv6Address(int(IPv6Address(EMBEDDINGS[embedding])) + int(address)))


@given(st.ip_addresses(v=4), st.integers(0, 2**80 - 1), st.sampled_from([0x2002, 0x2001_0000]))
def test_6to4_and_teredo_addresses_are_never_public(address: IPv4Address, rest: int, prefix: int) -> None:
    width = 16 if prefix == 0x2002 else 32
    value = prefix << (128 - width) | int(address) << (96 - width) | rest % 2 ** (96 - width)
    assert not is_public(IPv6Address(value))


# --- spellings ---

FORBIDDEN_NETWORKS = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "168.63.129.16/32",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
)


@st.composite
def forbidden_addresses(draw: st.DrawFn) -> IPv4Address:
    network = IPv4Network(draw(st.sampled_from(FORBIDDEN_NETWORKS)))
    return network[draw(st.integers(0, network.num_addresses - 1))]


@st.composite
def spellings(draw: st.DrawFn, address: IPv4Address) -> str:
    """One way to write an IPv4 address that inet_aton or a browser reads: 1 to 4 parts, mixed bases, odd digits."""
    parts = draw(st.integers(1, 4))
    value = int(address)
    numbers = [value >> 8 * (3 - place) & 255 for place in range(parts - 1)]
    numbers.append(value & (256 ** (5 - parts) - 1))
    written = []
    for number in numbers:
        zeros = "0" * draw(st.integers(0, 3))
        written.append(
            draw(st.sampled_from([f"{number}", f"0{zeros}{number:o}", f"0x{zeros}{number:x}", f"0X{number:X}"]))
        )
    text = draw(st.sampled_from([".", ".", "\u3002", "\uff0e"])).join(written)
    if draw(st.booleans()):  # full-width digits become ASCII by IDNA's mapping
        text = text.translate({ord(str(digit)): chr(0xFF10 + digit) for digit in range(10)})
    return text + draw(st.sampled_from(["", "", "."]))


@given(forbidden_addresses().flatmap(spellings), st.sampled_from(["http", "https", "HTTP"]))
def test_no_spelling_of_a_forbidden_ipv4_address_passes(host: str, scheme: str) -> None:
    assert refusal(f"{scheme}://{host}/a.jpg").reason == Reason.FORBIDDEN_ADDRESS


@given(st.data(), st.ip_addresses(v=4))
def test_every_spelling_of_ipv4_address_is_normalised(data: st.DataObject, address: IPv4Address) -> None:
    url = check_url(f"http://{data.draw(spellings(address))}/", AllowList.parse("0.0.0.0/0"))
    assert url.raw_host == str(address)


@given(forbidden_addresses(), st.sampled_from(sorted(EMBEDDINGS)), st.booleans())
def test_no_forbidden_ipv4_address_passes_inside_an_ipv6_literal(
    address: IPv4Address, embedding: str, dotted: bool
) -> None:
    embedded = IPv6Address(int(IPv6Address(EMBEDDINGS[embedding])) + int(address))
    text = f"{embedded.exploded[:29]}:{address}" if dotted else embedded.exploded
    assert refusal(f"http://[{text}]/").reason == Reason.FORBIDDEN_ADDRESS


@given(st.ip_addresses(), st.integers(1, 65535))
def test_url_passes_exactly_with_public_address_and_web_port(address: IPv4Address | IPv6Address, port: int) -> None:
    host = f"[{address}]" if address.version == 6 else str(address)
    expected = is_public(address) and port in (80, 443)
    try:
        check_url(f"http://{host}:{port}/", NOTHING)
    except ForbiddenUrl:
        assert not expected
    else:
        assert expected


@pytest.mark.parametrize(
    "host",
    [
        "1.2.3.4.5",
        "256.1.1.1",
        "1.256.1.1",
        "1.2.3.256",
        "4294967296",
        "0x100000000",
        "08.1.1.1",
        "1..1",
        "a.0x7f",
        "1.2.3.a.4",
    ],
)
def test_host_ending_in_number_is_rejected(host: str) -> None:
    assert refusal(f"http://{host}/").reason == Reason.BAD_URL


# --- URLs ---


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", Reason.BAD_URL),
        ("a.jpg", Reason.BAD_URL),
        ("//images.test/a.jpg", Reason.BAD_URL),
        ("http:/images.test/a.jpg", Reason.BAD_URL),
        ("http:///a.jpg", Reason.BAD_URL),
        ("http://:80/a.jpg", Reason.BAD_URL),
        ("file:///etc/passwd", Reason.FORBIDDEN_SCHEME),
        ("ftp://images.test/a.jpg", Reason.FORBIDDEN_SCHEME),
        ("gopher://images.test/", Reason.FORBIDDEN_SCHEME),
        ("http://user@images.test/", Reason.BAD_URL),
        ("http://user:secret@images.test/", Reason.BAD_URL),
        ("http://@images.test/", Reason.BAD_URL),
        ("http://images.test@127.0.0.1\\/", Reason.BAD_URL),
        ("http://1.1.1.1 &@127.0.0.1# @8.8.8.8/", Reason.BAD_URL),
        ("http://images.test:80:80/", Reason.BAD_URL),
        ("http://images.test:port/", Reason.BAD_URL),
        ("http://images.test:0/", Reason.BAD_URL),
        ("http://images.test:65536/", Reason.BAD_URL),
        ("http://images.test:٨٠/", Reason.BAD_URL),
        ("http://images.test:22/", Reason.FORBIDDEN_PORT),
        ("https://images.test:8443/", Reason.FORBIDDEN_PORT),
        ("http://1.1.1.1:8080/", Reason.FORBIDDEN_PORT),
        ("http://[::1/", Reason.BAD_URL),
        ("http://[1.2.3.4]/", Reason.BAD_URL),
        ("http://[2606:4700::1111%25eth0]/", Reason.BAD_URL),
        ("http://im ages.test/", Reason.BAD_URL),
        ("http://images..test/", Reason.BAD_URL),
        ("http://%31%32%37.0.0.1/", Reason.BAD_URL),
        ("http://127.0.0.1%00.images.test/", Reason.BAD_URL),
        ("http://images.test/\x00", Reason.BAD_URL),
        ("http://images.test/\r\nHost: other.test", Reason.BAD_URL),
        ("http://a\t.test/", Reason.BAD_URL),
        (f"http://{'a' * 64}.test/", Reason.BAD_URL),
        (f"http://{'a.' * 150}test/", Reason.BAD_URL),
        ("http://images.test/\ud800", Reason.BAD_URL),
        ("http://℀.test/", Reason.BAD_URL),
    ],
)
def test_non_web_url_is_rejected(url: str, reason: Reason) -> None:
    assert refusal(url).reason == reason


@pytest.mark.parametrize(
    ("url", "requested"),
    [
        ("http://images.test", "http://images.test/"),
        ("HTTP://Images.TEST/A.jpg", "http://images.test/A.jpg"),
        ("  http://images.test/a.jpg ", "http://images.test/a.jpg"),
        ("http://images.test:80/a.jpg", "http://images.test/a.jpg"),
        ("https://images.test:/a.jpg", "https://images.test/a.jpg"),
        ("http://images.test/a.jpg#part", "http://images.test/a.jpg"),
        ("http://images.test?x=1", "http://images.test/?x=1"),
        ("http://images.test/red shoe.jpg", "http://images.test/red%20shoe.jpg"),
        ("http://images.test/schöne/写真.jpg", "http://images.test/sch%C3%B6ne/%E5%86%99%E7%9C%9F.jpg"),
        ("http://images.test/a%2Fb%2fc%20d+e%C3%BC", "http://images.test/a%2Fb%2fc%20d+e%C3%BC"),
        ("http://images.test/100%/50%zz", "http://images.test/100%25/50%25zz"),
        ("http://images.test/t/w_1,h_2;x='y'(z)*!$&@:~", "http://images.test/t/w_1,h_2;x='y'(z)*!$&@:~"),
        ("http://images.test/x?a=1,2&b=%2C%2F+ c&d=?/", "http://images.test/x?a=1,2&b=%2C%2F+%20c&d=?/"),
        ("http://images.test/x?sig=a%2Bb%3D&q=[ü]", "http://images.test/x?sig=a%2Bb%3D&q=%5B%C3%BC%5D"),
        ('http://images.test/"<^`{|}>', "http://images.test/%22%3C%5E%60%7B%7C%7D%3E"),
        ("http:\\\\images.test\\a\\b.jpg?c\\d", "http://images.test/a/b.jpg?c%5Cd"),
        ("http://images.test\\@127.0.0.1/", "http://images.test/@127.0.0.1/"),
        ("http://images.test/media/../a.jpg", "http://images.test/a.jpg"),
        ("http://images.test/../../a.jpg", "http://images.test/a.jpg"),
        ("http://images.test/./a/./b.jpg", "http://images.test/a/b.jpg"),
        ("http://images.test/a/b/..", "http://images.test/a/"),
        ("http://images.test/a/.", "http://images.test/a/"),
        ("http://images.test/a/%2e%2E/b.jpg", "http://images.test/b.jpg"),
        ("http://images.test/a\\..\\b.jpg", "http://images.test/b.jpg"),
        ("http://images.test/a//../b.jpg", "http://images.test/a/b.jpg"),
        ("http://images.test/...a/..b.jpg?x=/../", "http://images.test/...a/..b.jpg?x=/../"),
        ("http://bücher.example/", "http://xn--bcher-kva.example/"),
        ("http://xn--bcher-kva.example/", "http://xn--bcher-kva.example/"),
        ("http://\uff49mages\u3002test/", "http://images.test/"),
        ("http://my_shop.images.test./", "http://my_shop.images.test./"),
        ("http://0x1.1.1.1/", "http://1.1.1.1/"),
        ("http://[2606:4700:0::1111]/", "http://[2606:4700::1111]/"),
    ],
)
def test_url_is_percent_encoded_once(url: str, requested: str) -> None:
    assert str(check_url(url, NOTHING)) == requested


@given(st.text())
def test_encoding_a_path_twice_changes_nothing(path: str) -> None:
    try:
        once = str(check_url(f"http://images.test/{path}", NOTHING))
    except ForbiddenUrl:
        return
    assert str(check_url(once, NOTHING)) == once
    assert once.isascii()


@given(st.text() | st.from_regex(r"https?://[^/]{0,20}(/.{0,5})?", fullmatch=True))
@example("http://\ud800/")
def test_any_text_is_clean_url_or_rejected(text: str) -> None:
    try:
        url = check_url(text, NOTHING)
    except ForbiddenUrl:
        return
    assert url.scheme in ("http", "https")
    assert url.raw_host
    assert url.raw_user is None
    assert url.raw_password is None
    assert url.port in (80, 443)
    assert "\n" not in str(url)
    assert " " not in str(url)


def test_credentials_in_a_url_are_refused_by_name() -> None:
    assert "password" in refusal("http://user:secret@images.test/").detail


def test_url_longer_than_limit_is_rejected() -> None:
    longest = "http://images.test/".ljust(MAX_URL_LENGTH, "a")
    assert str(check_url(longest, NOTHING)) == longest
    assert refusal(longest + "a").reason == Reason.BAD_URL


@pytest.mark.parametrize(
    "url",
    [
        "http://user:hunter2@images.test/?token=hunter2",
        "http://hunter2@images.test:22/",
        "http://images:hunter2/?token=hunter2",
        "ftp://images.test/?token=hunter2",
        "http://images.test:22/?token=hunter2",
        "http://127.0.0.1/?token=hunter2",
        "hunter2://images.test/",
    ],
)
def test_refusal_discloses_no_secrets(url: str) -> None:
    assert "hunter2" not in str(refusal(url))


# --- FETCH_ALLOW ---


@pytest.mark.parametrize(
    ("setting", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:45123/a.jpg"),
        ("127.0.0.1:45123", "http://127.0.0.1:45123/a.jpg"),
        ("127.0.0.1", "http://0x7f.1:45123/a.jpg"),
        ("10.0.0.0/8", "http://10.9.8.7/"),
        ("10.0.0.0/8:9000", "https://10.9.8.7:9000/"),
        ("::1", "http://[::1]:8080/"),
        ("[::1]", "http://[::1]:8080/"),
        ("[::1]:8080", "http://[0:0::1]:8080/"),
        ("fd00::/8", "http://[fd12::1]/"),
        ("[fd00::/8]:81", "http://[fd12::1]:81/"),
        ("minio:9000", "http://minio:9000/bucket/a.jpg"),
        ("Minio.", "http://MINIO:9000/bucket/a.jpg"),
        ("minio", "http://minio.:9000/bucket/a.jpg"),
        ("bücher.example:81", "http://xn--bcher-kva.example:81/"),
        ("1.1.1.1:8080", "http://1.1.1.1:8080/"),
        ("a.test, , 127.0.0.1 ,b.test,", "http://127.0.0.1/"),
    ],
)
def test_an_entry_allows_what_it_names(setting: str, url: str) -> None:
    check_url(url, AllowList.parse(setting))


@pytest.mark.parametrize(
    ("setting", "url", "reason"),
    [
        ("", "http://127.0.0.1/", Reason.FORBIDDEN_ADDRESS),
        ("127.0.0.1:45123", "http://127.0.0.1:45124/", Reason.FORBIDDEN_ADDRESS),
        ("127.0.0.1:45123", "http://127.0.0.1/", Reason.FORBIDDEN_ADDRESS),
        ("127.0.0.1", "http://127.0.0.2/", Reason.FORBIDDEN_ADDRESS),
        ("127.0.0.1", "http://[::ffff:127.0.0.1]/", Reason.FORBIDDEN_ADDRESS),
        ("127.0.0.1", "http://[::1]/", Reason.FORBIDDEN_ADDRESS),
        ("localhost", "http://127.0.0.1/", Reason.FORBIDDEN_ADDRESS),
        ("minio", "http://evil.minio:9000/", Reason.FORBIDDEN_PORT),
        ("minio:9000", "http://minio:9001/", Reason.FORBIDDEN_PORT),
        ("1.1.1.1:8080", "http://1.1.1.1:8081/", Reason.FORBIDDEN_PORT),
        ("10.0.0.0/8:9000", "http://minio:9001/", Reason.FORBIDDEN_PORT),
        ("127.0.0.1", "file://127.0.0.1/etc/passwd", Reason.FORBIDDEN_SCHEME),
        ("127.0.0.1", "http://me@127.0.0.1/", Reason.BAD_URL),
    ],
)
def test_an_entry_allows_nothing_else(setting: str, url: str, reason: Reason) -> None:
    assert refusal(url, AllowList.parse(setting)).reason == reason


def test_port_of_allowed_network_is_checked_after_look_up() -> None:
    check_url("http://minio:9000/", AllowList.parse("10.0.0.0/8:9000"))


@given(st.ip_addresses(v=4), st.ip_addresses(v=4), st.integers(1, 65535), st.integers(1, 65535))
def test_address_entry_with_port_permits_only_that_port(
    allowed: IPv4Address, other: IPv4Address, port: int, other_port: int
) -> None:
    allow = AllowList.parse(f"{allowed}:{port}")
    assert allow.permits(allowed, port)
    assert allow.permits(other, other_port) == (
        (other, other_port) == (allowed, port) or (is_public(other) and other_port in (80, 443))
    )


@pytest.mark.parametrize(
    "entry",
    [
        "http://minio",
        "minio/path",
        "minio:",
        "minio:0",
        "minio:65536",
        "minio:http",
        "*.internal",
        "me@minio",
        "10.0.0.1/8",
        "10.0.0.0/33",
        "300.1.1.1",
        "127.1",
        "0x7f000001",
        "a b",
        "::1:8080:",
        "[::1",
        "[::1]8080",
        "[]",
        "[minio]:80",
        "fe80::1%eth0/64/64",
    ],
)
def test_a_malformed_entry_is_named(entry: str) -> None:
    with pytest.raises(ValueError, match="FETCH_ALLOW entry") as caught:
        AllowList.parse(f"127.0.0.1, {entry} ,localhost")
    assert repr(entry) in str(caught.value)


# --- Retry-After ---

NOW = datetime(2026, 5, 4, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 7 ", 7.0),
        ("Mon, 04 May 2026 12:01:30 GMT", 90.0),
        ("Monday, 04-May-26 12:01:30 GMT", 90.0),
        ("Mon May  4 12:01:30 2026", 90.0),
        ("Mon, 04 May 2026 11:59:00 GMT", 0.0),
        ("Tue, 04 May 2027 12:00:00 GMT", MAX_RETRY_AFTER),
        ("999999999", MAX_RETRY_AFTER),
        ("9" * 5000, MAX_RETRY_AFTER),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        ("٣", None),
        ("Mon, 04 May 99999999999999999999 12:00:00 GMT", None),
        ("Mon, 04 May 2026 12:00:00 +99999999999999", None),
    ],
)
def test_retry_after_is_read_in_both_forms_and_capped(value: str, seconds: float | None) -> None:
    assert parse_retry_after(value, NOW) == seconds


@given(st.timedeltas(timedelta(0), timedelta(seconds=MAX_RETRY_AFTER)))
def test_retry_after_date_is_time_until_then(wait: timedelta) -> None:
    moment = NOW + timedelta(seconds=int(wait.total_seconds()))
    assert parse_retry_after(format_datetime(moment, usegmt=True), NOW) == int(wait.total_seconds())


@given(st.text() | st.from_regex(r"[A-Z][a-z]{2}, \d{1,9} [A-Z][a-z]{2} \d{1,9} [\d:]{1,12} [A-Z+-]{0,3}\d{0,9}"))
def test_no_retry_after_breaks_the_reader(value: str) -> None:
    seconds = parse_retry_after(value, NOW)
    assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER


# --- decompression ---


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "zlib": zlib.compress, "raw": raw_deflate}


@given(
    st.binary(max_size=300).map(lambda part: part * 500),
    st.sampled_from(sorted(COMPRESSORS)),
    st.integers(1, 5000),
)
def test_a_compressed_body_is_restored_however_it_is_cut(body: bytes, compressor: str, size: int) -> None:
    compressed = COMPRESSORS[compressor](body)
    inflater = Inflater("gzip" if compressor == "gzip" else "deflate")
    restored = b""
    for start in range(0, len(compressed), size):
        assert start == 0 or not inflater.complete or restored == body
        for piece in inflater.feed(compressed[start : start + size]):
            assert len(piece) <= Inflater.STEP
            restored += piece
    assert restored == body
    assert inflater.complete


@pytest.mark.parametrize("compressor", sorted(COMPRESSORS))
def test_body_ending_near_step_edge_is_complete(compressor: str) -> None:
    # zlib may have taken all input and still hold back output, at most one match of 258 bytes
    for length in (0, 1, *range(Inflater.STEP - 1, Inflater.STEP + 300), 4 * Inflater.STEP):
        inflater = Inflater("gzip" if compressor == "gzip" else "deflate")
        assert b"".join(inflater.feed(COMPRESSORS[compressor](b"a" * length))) == b"a" * length
        assert inflater.complete


def test_inflate_reads_gzip_members_and_ignores_trailing_bytes() -> None:
    inflater = Inflater("gzip")
    two = gzip.compress(b"one ") + gzip.compress(b"two")
    assert b"".join(inflater.feed(two)) == b"one two"
    assert b"".join(inflater.feed(b"\0" * 512)) == b""
    assert inflater.complete


def test_a_body_that_is_cut_off_is_incomplete() -> None:
    inflater = Inflater("gzip")
    assert b"".join(inflater.feed(gzip.compress(b"whole")[:-1]))
    assert not inflater.complete


def test_bytes_that_are_not_compressed_are_an_error() -> None:
    with pytest.raises(zlib.error):
        list(Inflater("gzip").feed(b"\xff\xd8\xff\xe0 a JPEG"))


@pytest.mark.slow
def test_inflate_bounds_output_of_bomb() -> None:
    compressor = zlib.compressobj(9, wbits=16 + zlib.MAX_WBITS)
    mebibyte = bytes(1024 * 1024)
    bomb = b"".join(compressor.compress(mebibyte) for _ in range(1024)) + compressor.flush()
    assert len(bomb) < 1.1 * len(mebibyte)

    inflater = Inflater("gzip")
    produced = 0
    for piece in inflater.feed(bomb):
        produced += len(piece)
        if produced > len(mebibyte):
            break
    assert produced <= len(mebibyte) + Inflater.STEP
    assert not inflater.complete
