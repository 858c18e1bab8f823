"""FETCH_HEADERS: which headers a download has, by its host."""

import re

import pytest
from yarl import URL

from infra.outbound.request_headers import RequestHeaders


@pytest.mark.parametrize(
    ("url", "headers"),
    [
        ("http://shop.example/a.jpg", {"User-Agent": "own", "Accept": "image/*"}),
        ("http://SHOP.example./a.jpg", {"User-Agent": "own", "Accept": "image/*"}),
        ("http://img.shop.example/a.jpg", {"User-Agent": "domain", "Accept": "image/*"}),
        ("http://noshop.example/a.jpg", {"User-Agent": "all"}),
        ("http://cdn.example:8080/a.jpg", {"User-Agent": "all", "Referer": "http://cdn.example:8080/"}),
        ("https://bücher.example/a.jpg", {"User-Agent": "all", "Referer": "https://pages.example/x"}),
        ("http://192.0.2.1/a.jpg", {"User-Agent": "address"}),
        ("http://[2001:db8::1]/a.jpg", {"User-Agent": "six"}),
    ],
)
def test_closest_pattern_decides_each_header(url: str, headers: dict[str, str]) -> None:
    setting = """{
        "*": {"user-agent": "all"},
        ".shop.example": {"User-Agent": "domain", "Accept": "image/*"},
        "Shop.example.": {"User-Agent": "own"},
        "cdn.example": {"Referer": "origin"},
        "bücher.example": {"referer": "https://pages.example/x"},
        "192.0.2.1": {"User-Agent": "address"},
        "[2001:db8::1]": {"User-Agent": "six"}
    }"""
    assert RequestHeaders.parse(setting).of(URL(url)) == headers


def test_without_a_setting_there_are_no_headers() -> None:
    assert RequestHeaders.parse(" ").of(URL("http://shop.example/")) == {}


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("shop.example: Referer", "JSON"),
        ("[]", "JSON object"),
        ('{"shop.example": "Referer"}', "shop.example"),
        ('{"shop example": {}}', "shop example"),
        ('{"http://shop.example/": {}}', "http://shop.example/"),
        ('{"shop.example": {"Cookie": "a=1"}}', "Cookie"),
        ('{"shop.example": {"Referer": 1}}', "Referer"),
        ('{"shop.example": {"Referer": ""}}', "Referer"),
        ('{"shop.example": {"Referer": "a\\r\\nHost: b"}}', "Referer"),
        ('{"shop.example": {"Accept": "ü"}}', "Accept"),
    ],
)
def test_malformed_setting_is_named(setting: str, named: str) -> None:
    with pytest.raises(ValueError, match=re.escape(named)):
        RequestHeaders.parse(setting)
