"""Reasons of failures in words, with advice."""

import pytest

from streams.request.failures import failure_of, is_reason


@pytest.mark.parametrize("reason", ["fetch_timeout", "fetch_http_404", "fetch_http_599", "web_page", "lost"])
def test_known_reason_has_words_and_advice(reason: str) -> None:
    assert is_reason(reason)
    title, advice = failure_of(reason)
    assert title != reason
    assert advice


@pytest.mark.parametrize("text", ["", "timeout", "fetch_http_", "fetch_http_4040", "fetch_http_600", "web_page "])
def test_unknown_reason_is_told(text: str) -> None:
    assert not is_reason(text)


def test_server_errors_are_worth_a_retry() -> None:
    assert "later" in failure_of("fetch_http_502").advice
    assert "later" not in failure_of("fetch_http_410").advice


def test_reason_of_a_later_release_is_shown_unchanged() -> None:
    assert failure_of("new_reason").title == "new_reason"
