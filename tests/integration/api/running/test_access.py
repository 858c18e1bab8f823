"""Who may use the API, how often, and from which web pages."""

import asyncio
from collections.abc import Iterator

import pytest
from aiokafka import AIOKafkaConsumer

from infra.settings import Settings, environment_of
from streams.log.topics import Topics
from tests.integration.api.running.conftest import KEY, OTHER_KEY, Api, running_api
from tests.support.console_script import shrinkstream
from tests.support.published_clients import Answer, call
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

CSV = b"S. No.,Product Name,Input Image URLs\n1,Shoe,https://shop.example/shoe.jpg\n"
BAD_CSV = CSV + b",Hat,ftp://shop.example/hat.jpg\n"


def events_written(settings: Settings) -> int:
    """How many events are on the topics that an upload writes to."""

    async def ends() -> int:
        topics = Topics(settings.topic_prefix)
        consumer = AIOKafkaConsumer(topics.requests, topics.image_requests, bootstrap_servers=settings.kafka_brokers)
        await consumer.start()
        try:
            return sum((await consumer.end_offsets(consumer.assignment())).values())
        finally:
            await consumer.stop()

    return asyncio.run(ends())


@pytest.mark.parametrize("path", ["/api/upload", "/api/images/upload", "/upload"])
def test_dry_run_counts_rows_and_images_without_writing(api: Api, path: str) -> None:
    before = events_written(api.settings)
    answer = api.call("POST", f"{path}?validate_only=true", CSV, Content_Type="text/csv", Idempotency_Key="tried")
    assert answer.status == 200
    assert answer.json == {
        "valid": True,
        "rows": 1,
        "images": 1,
        "detail": "the file can be used as it is",
        "header": ["S. No.", "Product Name", "Input Image URLs"],
        "errors": [],
        "errorCount": 0,
    }
    assert "location" not in answer.headers
    assert events_written(api.settings) == before
    # The key was not used up: a real upload of another file may have it.
    real = api.call("POST", path, CSV + b"2,Hat,https://shop.example/hat.jpg\n", Content_Type="text/csv")
    assert real.status == 202


def test_dry_run_of_invalid_csv_names_its_errors(api: Api) -> None:
    tried = api.call("POST", "/api/upload?validate_only=1", BAD_CSV, Content_Type="text/csv")
    refused = api.call("POST", "/api/upload", BAD_CSV, Content_Type="text/csv")
    assert (tried.status, refused.status) == (200, 422)
    report, problem = tried.json, refused.json
    assert (report["valid"], report["rows"], report["images"]) == (False, 2, 2)
    for member in ("errors", "errorCount", "detail"):
        assert report[member] == problem[member]
    assert [error["code"] for error in report["errors"]] == ["serial_missing", "url_scheme"]
    assert {error["row"] for error in report["errors"]} == {3}


def test_flag_neither_true_nor_false_is_rejected(api: Api) -> None:
    answer = api.call("POST", "/api/upload?validate_only=perhaps", CSV, Content_Type="text/csv")
    assert (answer.status, answer.json["type"]) == (422, "urn:shrinkstream:problem:bad-parameter")


@pytest.mark.parametrize("headers", [{}, {"X-API-Key": "wrong"}, {"Authorization": "Bearer "}, {"X-API-Key": "séname"}])
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/api/upload"), ("GET", "/api/status/x"), ("GET", "/download/x"), ("GET", "/x")]
)
def test_every_route_requires_a_key(api: Api, method: str, path: str, headers: dict[str, str]) -> None:
    answer = call(api.url, method, path, b"" if method == "POST" else None, headers)
    assert (answer.status, answer.json["type"]) == (401, "urn:shrinkstream:problem:unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/healthz", 200),
        ("/readyz", 200),
        ("/metrics", 200),
        ("/openapi.json", 200),
        ("/asyncapi.json", 200),
        ("/docs", 200),
        ("/docs/events", 200),
        ("/docs/redoc.js", 200),
        ("/images/b2da3e5f-e062-435c-aaa5-a9d67346ed1d/0.jpg", 404),
    ],
)
def test_probes_metrics_documents_and_images_need_no_key(api: Api, path: str, status: int) -> None:
    # An API that has just started is not ready yet.
    wait_until(lambda: call(api.url, "GET", path).status == status, f"{status} for {path}")


def test_request_belongs_to_the_key_that_made_it(api: Api) -> None:
    accepted = api.call("POST", "/api/upload", CSV, Content_Type="text/csv").json["requestId"]
    assert api.call("GET", f"/api/status/{accepted}", Authorization=f"Bearer {KEY}").status == 200
    for path in (
        f"/api/status/{accepted}",
        f"/api/download/{accepted}",
        f"/api/requests/{accepted}/archive.zip",
    ):
        strange = call(api.url, "GET", path, None, {"X-API-Key": OTHER_KEY})
        unknown = call(api.url, "GET", path.replace(accepted, "0" * 36), None, {"X-API-Key": OTHER_KEY})
        assert strange.status == unknown.status == 404
        assert strange.body.replace(accepted.encode(), b"0" * 36) == unknown.body


def test_api_without_keys_refuses_to_serve_the_network(api: Api) -> None:
    settings = api.settings.model_copy(update={"api_keys": None, "host": "0.0.0.0"})
    done = shrinkstream("api", environment=environment_of(settings))
    assert done.returncode != 0
    assert "SHRINKSTREAM_API_KEYS" in done.stderr


def test_every_response_has_security_headers(api: Api) -> None:
    for path in ("/healthz", "/docs", "/nowhere", "/openapi.json"):
        headers = api.call("GET", path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["server"] == "shrinkstream"


@pytest.mark.parametrize(("path", "document"), [("/docs", "/openapi.json"), ("/docs/events", "/asyncapi.json")])
def test_documentation_pages_run_only_their_own_scripts(api: Api, path: str, document: str) -> None:
    page = api.call("GET", path)
    policy = page.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "script-src 'self';" in policy
    assert f'data-document="{document}"'.encode() in page.body
    assert page.headers["content-security-policy"] != api.call("GET", path).headers["content-security-policy"]


def test_no_origin_may_read_responses_by_default(api: Api) -> None:
    answer = api.call("GET", "/healthz", Origin="https://shop.example")
    assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_only_allowed_origin_may_read_responses_and_errors(strict_api: Api) -> None:
    for path in ("/healthz", "/nowhere"):
        friend = strict_api.call("GET", path, Origin="https://shop.example")
        assert friend.headers["access-control-allow-origin"] == "https://shop.example"
        assert "origin" in friend.headers["vary"].lower()
        stranger = strict_api.call("GET", path, Origin="https://evil.example")
        assert "access-control-allow-origin" not in stranger.headers


def test_preflight_allows_upload_from_allowed_origin(strict_api: Api) -> None:
    answer = call(
        strict_api.url,
        "OPTIONS",
        "/api/upload",
        None,
        {
            "Origin": "https://shop.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "x-api-key, idempotency-key",
        },
    )
    assert answer.status == 204
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "x-api-key" in answer.headers["access-control-allow-headers"].lower()
    assert answer.headers["access-control-allow-origin"] == "https://shop.example"


FORM = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n' + CSV + b"\r\n--b--\r\n"


def upload_of_page(api: Api, **headers: str) -> Answer:
    """An upload that a browser sends for a page without asking before."""
    path = "/api/upload?validate_only=true"
    return api.call("POST", path, FORM, Content_Type="multipart/form-data; boundary=b", **headers)


@pytest.fixture(scope="session")
def open_api(api: Api) -> Iterator[Api]:
    """Another on the same system, without keys and limits."""
    with running_api(
        api.settings, api_keys=None, public_url="http://shrink.example", cors_origins="https://shop.example"
    ) as running:
        yield running


def test_api_without_keys_rejects_cross_site_uploads(open_api: Api) -> None:
    strange = upload_of_page(open_api, Sec_Fetch_Site="cross-site", Origin="https://evil.example")
    assert (strange.status, strange.json["type"]) == (403, "urn:shrinkstream:problem:foreign-page")
    for headers in (
        {"Sec_Fetch_Site": "cross-site", "Origin": "https://shop.example"},
        {"Sec_Fetch_Site": "same-origin", "Origin": open_api.url},
        {},
    ):
        assert upload_of_page(open_api, **headers).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.example."]
)
def test_api_without_keys_rejects_foreign_host_names(open_api: Api, host: str) -> None:
    for answer in (open_api.call("GET", "/api/requests", Host=host), upload_of_page(open_api, Host=host)):
        assert (answer.status, answer.json["type"]) == (403, "urn:shrinkstream:problem:foreign-page")
    assert open_api.call("GET", "/healthz", Host=host).status == 200


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8080", "a.localhost:1", "127.0.0.1:8080", "[::1]:8080", "x", "", "SHRINK.example:8080"],
)
def test_api_without_keys_accepts_local_and_public_host_names(open_api: Api, host: str) -> None:
    assert open_api.call("GET", "/api/requests", Host=host).status == 200
    assert upload_of_page(open_api, Host=host).status == 200


def test_api_with_keys_accepts_any_host_and_origin(api: Api) -> None:
    headers = {"Host": "shrink.example", "Sec_Fetch_Site": "cross-site", "Origin": "https://evil.example"}
    assert upload_of_page(api, **headers).status == 200


def test_rate_limit_sends_retry_after_and_exempts_probes(limited_api: Api) -> None:
    answers = [limited_api.call("GET", "/api/status/x") for _ in range(20)]
    refused = [answer for answer in answers if answer.status == 429]
    assert refused
    assert refused[0].json["type"] == "urn:shrinkstream:problem:too-many-requests"
    assert 1 <= int(refused[0].headers["retry-after"]) <= 2
    assert all(limited_api.call("GET", "/healthz").status == 200 for _ in range(20))
