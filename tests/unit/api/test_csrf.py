"""CSRF and DNS-rebinding protection: which `Host` and `Origin` an API without keys accepts."""

from collections.abc import Mapping

import pytest
from aiohttp.test_utils import make_mocked_request

from api.http.csrf import CsrfGuard
from api.http.problems import Problem, ProblemCode
from infra.settings import Settings

LOOPBACK = Settings()
COMPOSE = Settings(open_network=True, public_url="http://127.0.0.1:8080")
OPEN = Settings(open_network=True)


def accepts(settings: Settings, method: str = "GET", **headers: str) -> bool:
    given: Mapping[str, str] = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        CsrfGuard(settings).check(make_mocked_request(method, "/api/upload", headers=given))
    except Problem as problem:
        return problem.code != ProblemCode.FOREIGN_PAGE.code
    return True


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "127.8.8.8", "[::1]:8080", "localhost", "a.localhost:1", "x", ""])
def test_api_on_loopback_knows_its_own_hosts(host: str) -> None:
    assert accepts(LOOPBACK, Host=host)


@pytest.mark.parametrize(
    "host",
    [
        "0.0.0.0:8080",
        "[::ffff:127.0.0.1]:8080",
        "[::ffff:7f00:1]",
        "[::]:8080",
        "192.168.1.5",
        "[fe80::1]",
        "[::127.0.0.1]",
        "127.1",
        "evil.example",
        "localhost.evil.example",
        "[",
    ],
)
def test_api_on_loopback_refuses_every_other_host(host: str) -> None:
    assert not accepts(LOOPBACK, Host=host)


@pytest.mark.parametrize(
    ("host", "accepted"),
    [
        ("evil.example:8080", False),
        ("shrink.corp", False),
        ("0.0.0.0:8080", False),
        ("[::ffff:127.0.0.1]:8080", False),
        ("127.0.0.1:8080", True),
        ("192.168.1.5:8080", True),
        ("localhost:8080", True),
        ("gateway:8080", True),
    ],
)
def test_public_url_names_hosts_of_open_network(host: str, accepted: bool) -> None:
    assert accepts(COMPOSE, Host=host) is accepted
    assert accepts(OPEN, Host=host), "something else controls access to it"


@pytest.mark.parametrize("settings", [LOOPBACK, COMPOSE, OPEN])
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:9999", "Sec_Fetch_Site": "same-site"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_foreign_page_cannot_post_but_can_link(settings: Settings, headers: dict[str, str]) -> None:
    assert not accepts(settings, "POST", Host="127.0.0.1:8080", **headers)
    assert not accepts(settings, "DELETE", Host="127.0.0.1:8080", **headers)
    assert accepts(settings, "GET", Host="127.0.0.1:8080", **headers)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://localhost:8080"},
        {"Origin": "null", "Sec_Fetch_Site": "same-origin"},
        {"Origin": "https://shrink.example"},
        {"Origin": "https://shop.example", "Sec_Fetch_Site": "cross-site"},
    ],
)
def test_own_page_and_named_origins_may_post(headers: dict[str, str]) -> None:
    settings = Settings(public_url="https://SHRINK.example/", cors_origins="https://shop.example")
    assert accepts(settings, "POST", Host="localhost:8080", **headers)
