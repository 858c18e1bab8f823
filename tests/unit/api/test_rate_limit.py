"""The token bucket: what it lets through, and what it remembers."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.http import rate_limit
from api.http.problems import Problem
from api.http.rate_limit import RateLimit, address_of


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_request_after_burst_gets_retry_after() -> None:
    clock = Clock()
    limit = RateLimit(2, 5, clock)
    assert [limit.take("shop") for _ in range(5)] == [0.0] * 5
    assert limit.take("shop") == pytest.approx(0.5)
    clock.now += 0.5
    assert limit.take("shop") == 0.0
    assert limit.take("shop") > 0.0


def test_a_refusal_says_so_in_whole_seconds() -> None:
    limit = RateLimit(0.3, 1, Clock())
    limit.require("shop")
    with pytest.raises(Problem) as refused:
        limit.require("shop")
    assert (refused.value.status, refused.value.headers["Retry-After"]) == (429, "4")


def test_one_client_takes_nothing_from_another() -> None:
    limit = RateLimit(1, 1, Clock())
    assert limit.take("shop") == 0.0
    assert limit.take("other") == 0.0
    assert limit.take("shop") > 0.0


def test_rate_of_zero_limits_no_client() -> None:
    limit = RateLimit(0, 1, Clock())
    assert not any(limit.take("shop") for _ in range(100))


@given(st.lists(st.floats(0, 3), min_size=1, max_size=200), st.floats(0.1, 50), st.integers(1, 20))
def test_admitted_requests_never_exceed_burst_plus_rate(pauses: list[float], rate: float, burst: int) -> None:
    clock = Clock()
    limit = RateLimit(rate, burst, clock)
    passed = 0
    for pause in pauses:
        clock.now += pause
        passed += limit.take("shop") == 0.0
    assert passed <= burst + sum(pauses) * rate + 1e-3


@given(st.floats(0.1, 50), st.integers(1, 20))
def test_client_that_waits_retry_after_is_admitted(rate: float, burst: int) -> None:
    clock = Clock()
    limit = RateLimit(rate, burst, clock)
    while not (wait := limit.take("shop")):
        pass
    clock.now += wait + 1e-6
    assert limit.take("shop") == 0.0


def test_strangers_without_number_take_no_memory_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "MAX_CLIENTS", 3)
    limit = RateLimit(1, 1, Clock())
    for client in ("a", "b", "c", "a", "d"):
        limit.take(client)
    assert set(limit._buckets) == {"c", "a", "d"}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("192.0.2.1", "192.0.2.2", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
    ],
)
def test_addresses_of_one_ipv6_network_are_one_client(one: str, other: str, same: bool) -> None:
    first, second = (address_of(cast("Any", SimpleNamespace(remote=address))) for address in (one, other))
    assert (first == second) == same
