"""Limits that hold: on what is streamed, packed, slow, broken off or too much at once; nothing is left behind."""

import gzip
import http.client
import re
import socket
import threading
import time
import zlib
from collections.abc import Callable
from urllib.parse import urlsplit
from uuid import uuid4

import psutil
import pytest

from api.requests.download import MISS_BURST
from infra.disk import free_bytes
from tests.integration.api.running.conftest import KEY, OTHER_KEY, Api, running_api
from tests.support.large_image import IMAGE, store_large_image
from tests.support.scrape import Scrape, samples_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

HEADER = b"S. No.,Product Name,Input Image URLs\n"
CSV = HEADER + b"1,Shoe,https://shop.example/shoe.jpg\n"
LIMIT = 1024 * 1024  # as in the fixture


def connect(api: Api, headers: str, *, path: str = "/api/upload") -> socket.socket:
    """An upload that has begun: its headers are sent, its body is not."""
    parts = urlsplit(api.url)
    connection = socket.create_connection((parts.hostname or "", parts.port or 0), timeout=60)
    connection.sendall(f"POST {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nX-API-Key: {KEY}\r\n{headers}\r\n".encode())
    return connection


def answer_of(connection: socket.socket) -> http.client.HTTPResponse:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response


CHUNKED = "Content-Type: text/csv\r\nTransfer-Encoding: chunked\r\n"


def test_endless_streamed_body_is_rejected_at_the_limit(api: Api) -> None:
    with connect(api, CHUNKED) as connection:
        for _ in range(LIMIT // 65536 + 8):
            connection.sendall(b"%x\r\n%s\r\n" % (65536, b"x" * 65536))
        response = answer_of(connection)
        assert (response.status, response.headers["Content-Type"]) == (413, "application/problem+json")
        assert api.spooled() == []


def test_content_length_over_limit_is_rejected_before_the_body(api: Api) -> None:
    connection = connect(api, f"Content-Type: text/csv\r\nContent-Length: {10 * LIMIT}\r\n")
    response = answer_of(connection)
    assert response.status == 413
    assert response.headers["Content-Type"] == "application/problem+json"
    connection.close()


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress], ids=["gzip", "deflate"])
def test_compressed_csv_is_decompressed_and_checked(api: Api, pack: Callable[[bytes], bytes]) -> None:
    encoding = "gzip" if pack is gzip.compress else "deflate"
    answer = api.call(
        "POST", "/api/upload?validate_only=true", pack(CSV), Content_Type="text/csv", Content_Encoding=encoding
    )
    assert (answer.status, answer.json["images"]) == (200, 1)


def test_decompression_bomb_stops_at_limit_in_flat_memory(api: Api) -> None:
    bomb = gzip.compress(HEADER + b" " * 300 * LIMIT)
    assert len(bomb) < LIMIT
    before = psutil.Process(api.process.pid).memory_info().rss
    answer = api.call("POST", "/api/upload", bomb, Content_Type="text/csv", Content_Encoding="gzip")
    assert (answer.status, answer.json["type"]) == (413, "urn:shrinkstream:problem:too-large")
    assert psutil.Process(api.process.pid).memory_info().rss - before < 50 * LIMIT


def test_body_contradicting_its_content_encoding_is_rejected(api: Api) -> None:
    answer = api.call("POST", "/api/upload", CSV, Content_Type="text/csv", Content_Encoding="gzip")
    assert answer.status == 400
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip"])
def test_unknown_content_encoding_is_rejected_naming_supported_ones(api: Api, encoding: str) -> None:
    answer = api.call("POST", "/api/upload", CSV, Content_Type="text/csv", Content_Encoding=encoding)
    assert answer.status in (400, 415), answer.body
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("begun", [CHUNKED, "Content-Type: text/csv\r\nContent-Length: 5000\r\n"])
def test_disconnecting_client_leaves_no_spool_file(api: Api, begun: str) -> None:
    connection = connect(api, begun)
    connection.sendall(b"100\r\n" + b"x" * 0x100 + b"\r\n")
    wait_until(lambda: len(api.spooled()) == 1, "an upload in the spool")
    connection.close()
    wait_until(lambda: not api.spooled(), "an empty spool")


def images_answered(api: Api, status: int) -> float:
    scrape = Scrape(list(samples_of("api", urlsplit(api.url).netloc)))
    return scrape.total("shrinkstream_http_requests_total", route="/images/{path}", status=str(status))


def test_client_disconnecting_during_image_logs_no_error(api: Api) -> None:
    store_large_image(api.settings)
    parts = urlsplit(api.url)
    before = images_answered(api, 200)
    connection = socket.create_connection((parts.hostname or "", parts.port or 0), timeout=60)
    connection.sendall(f"GET /{IMAGE} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
    assert connection.recv(15) == b"HTTP/1.1 200 OK"
    connection.close()
    wait_until(lambda: images_answered(api, 200) > before, "the counted image")
    assert images_answered(api, 500) == 0


def test_concurrent_uploads_over_limit_get_retry_after(strict_api: Api) -> None:
    first, second = connect(strict_api, CHUNKED), connect(strict_api, CHUNKED)
    try:
        wait_until(lambda: len(strict_api.spooled()) == 2, "two uploads in the spool")
        refused = strict_api.call("POST", "/api/upload", CSV, Content_Type="text/csv")
        assert (refused.status, refused.json["type"]) == (503, "urn:shrinkstream:problem:unavailable")
        assert int(refused.headers["retry-after"]) > 0
    finally:
        first.close()
        second.close()
    wait_until(lambda: not strict_api.spooled(), "an empty spool")
    assert strict_api.call("POST", "/api/upload?validate_only=1", CSV, Content_Type="text/csv").status == 200


def test_uploads_keep_a_reserve_on_the_disk(api: Api) -> None:
    free = int(free_bytes(api.settings.data_dir))
    with running_api(api.settings, min_free_bytes=free * 2) as full:
        refused = full.call("POST", "/api/upload", CSV, Content_Type="text/csv")
    assert (refused.status, refused.json["type"]) == (507, "urn:shrinkstream:problem:no-room")
    assert int(refused.headers["retry-after"]) > 0
    assert api.spooled() == []


def test_form_with_endless_fields_is_rejected(api: Api) -> None:
    fields = b"".join(b'--b\r\nContent-Disposition: form-data; name="n%d"\r\n\r\nx\r\n' % n for n in range(1000))
    answer = api.call("POST", "/api/upload", fields + b"--b--\r\n", Content_Type="multipart/form-data; boundary=b")
    assert (answer.status, answer.json["type"]) == (400, "urn:shrinkstream:problem:bad-form")


def test_concurrent_uploads_keep_memory_flat(api: Api) -> None:
    rows = b"".join(b"%d,Shoe,https://shop.example/%d.jpg\n" % (number, number) for number in range(20_000))
    statuses: list[int] = []

    def upload() -> None:
        statuses.append(api.call("POST", "/api/upload", HEADER + rows, Content_Type="text/csv").status)

    before = psutil.Process(api.process.pid).memory_info().rss
    threads = [threading.Thread(target=upload) for _ in range(15)]
    for thread in threads:
        thread.start()
    peak = 0
    while any(thread.is_alive() for thread in threads):
        peak = max(peak, psutil.Process(api.process.pid).memory_info().rss)
        time.sleep(0.02)
    assert statuses == [202] * 15
    # 15 x 20,000 events are 165 MB on the wire; each upload may keep some 2 MiB of its own.
    assert peak - before < 80 * LIMIT


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GARBAGE\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nBad Header: secret\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: %s\r\n\r\n" % (b"a" * 20_000), 400),
        (b"POST /api/upload HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nExpect: magic\r\n\r\n", 417),
    ],
    ids=["no HTTP", "broken header", "long header", "broken length", "unknown expectation"],
)
def test_malformed_http_gets_problem_without_echoed_input(api: Api, sent: bytes, status: int) -> None:
    parts = urlsplit(api.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=60) as connection:
        connection.sendall(sent)
        response = answer_of(connection)
        body = response.read().decode()
    assert (response.status, response.headers["Content-Type"]) == (status, "application/problem+json")
    for inside in ("secret", "aaaa", "GARBAGE", "magic", "aiohttp", "Traceback", "Python"):
        assert inside not in body + str(response.headers)


def test_expect_header_gets_100_continue(api: Api) -> None:
    connection = connect(
        api,
        f"Content-Type: text/csv\r\nContent-Length: {len(CSV)}\r\nExpect: 100-continue\r\n",
        path="/api/upload?validate_only=true",
    )
    with connection:
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(CSV)
        assert answer_of(connection).status == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("DELETE", "/api/upload", 405),
        ("PATCH", "/api/status/x", 405),
        ("OPTIONS", "/api/upload", 405),
        ("GET", "/images/../../etc/passwd", 404),
        ("GET", "/docs/%2e%2e%2fapp.py", 404),
    ],
)
def test_unknown_paths_and_methods_are_problems(api: Api, method: str, path: str, status: int) -> None:
    answer = api.call(method, path)
    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")
    if status == 405:
        assert answer.headers["allow"]


def test_body_neither_form_nor_csv_is_rejected(api: Api) -> None:
    answer = api.call("POST", "/api/upload", b"{}", Content_Type="application/json")
    assert (answer.status, answer.json["type"]) == (415, "urn:shrinkstream:problem:unsupported-media-type")


@pytest.mark.parametrize("key", ["\xff", "a\tb"])
def test_idempotency_key_beyond_printable_ascii_is_refused(api: Api, key: str) -> None:
    answer = api.call("POST", "/api/upload", CSV, Content_Type="text/csv", Idempotency_Key=key)
    assert (answer.status, answer.json["type"]) == (422, "urn:shrinkstream:problem:bad-idempotency-key")


def test_known_image_is_answered_without_its_bytes(api: Api) -> None:
    store_large_image(api.settings)
    whole = api.call("HEAD", f"/{IMAGE}")
    assert (whole.status, whole.headers["cache-control"]) == (200, "public, max-age=86400")
    for sent in (whole.headers["etag"], f'"other", W/{whole.headers["etag"]}', "*"):
        answer = api.call("GET", f"/{IMAGE}", If_None_Match=sent)
        assert (answer.status, answer.body) == (304, b"")
        for name in ("etag", "cache-control", "cross-origin-resource-policy"):
            assert answer.headers[name] == whole.headers[name]
    assert api.call("HEAD", f"/{IMAGE}", If_None_Match='"other"').status == 200


def test_misses_of_images_are_limited_and_hits_not(api: Api) -> None:
    store_large_image(api.settings)
    with running_api(api.settings) as other:
        # At once, on one connection: what is allowed meanwhile is less than what is asked for.
        asked = [f"GET /images/{uuid4()}/0.jpg HTTP/1.1\r\nHost: shop\r\n\r\n" for _ in range(4 * MISS_BURST)]
        parts = urlsplit(other.url)
        statuses: list[bytes] = []
        with (
            socket.create_connection((parts.hostname or "", parts.port or 0), timeout=60) as client,
            client.makefile("rb") as answers,
        ):
            threading.Thread(target=client.sendall, args=("".join(asked).encode(),), daemon=True).start()
            while b"429" not in statuses:
                line = answers.readline()
                assert line, "the API has closed the connection"
                statuses += re.findall(rb"HTTP/1.1 (\d+)", line)
        assert MISS_BURST < len(statuses) < len(asked)
        assert set(statuses[:-1]) == {b"404"}
        assert other.call("HEAD", f"/{IMAGE}").status == 200


def test_one_owner_cannot_take_all_uploads(api: Api) -> None:
    share = api.settings.max_uploads // 4
    begun = [connect(api, CHUNKED) for _ in range(share)]
    wait_until(lambda: len(api.spooled()) == share, "the begun uploads")
    try:
        refused = api.call("POST", "/api/upload?validate_only=true", CSV, Content_Type="text/csv")
        assert (refused.status, refused.json["type"]) == (503, "urn:shrinkstream:problem:unavailable")
        assert f"the limit of {share} per client" in refused.json["detail"]
        other = api.call("POST", "/api/upload?validate_only=true", CSV, Content_Type="text/csv", X_API_Key=OTHER_KEY)
        assert other.status == 200
    finally:
        for connection in begun:
            connection.close()
    wait_until(lambda: not api.spooled(), "an empty spool")


def test_daily_quota_of_images_holds_for_uploads(api: Api) -> None:
    with running_api(api.settings, max_images_per_day=3) as bounded:
        answers = [bounded.call("POST", "/api/upload", CSV, Content_Type="text/csv") for _ in range(4)]
        assert [answer.status for answer in answers] == [202, 202, 202, 429]
        assert answers[3].json["type"] == "urn:shrinkstream:problem:quota-exceeded"
        assert 28_000 < int(answers[3].headers["retry-after"]) <= 28_800
        tried = bounded.call("POST", "/api/upload?validate_only=true", CSV, Content_Type="text/csv")
        assert tried.status == 200
