import asyncio
import contextvars
import io
import json
import logging
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from infra.observability import logs
from infra.observability.logs import NoRepeats, configure_logging, log_about, redacted, silenced


def record(message: str, *arguments: object, name: str = "aiokafka.client") -> logging.LogRecord:
    return logging.LogRecord(name, logging.ERROR, "", 0, message, arguments, None)


def test_repeated_message_is_rate_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    repeats = NoRepeats("aiokafka")
    assert [repeats.filter(record(message)) for message in ("away", "away", "other", "away")] == [
        True,
        False,
        True,
        False,
    ]
    assert [repeats.filter(record("broker %d is away", number)) for number in (1, 2)] == [True, False]
    assert all(repeats.filter(record("away", name="streams")) for _ in range(2)), "another library's"
    monkeypatch.setattr(logs, "REPEATS_EVERY", 0.0)
    assert repeats.filter(record("away"))


def test_repeats_of_a_library_are_logged_once(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO")
    for _ in range(3):
        logging.getLogger("aiokafka.consumer.fetcher").error("Failed fetch messages from %s: %s", 1, "NodeNotReady")
    assert capsys.readouterr().err.count("NodeNotReady") == 1


def test_a_silenced_library_speaks_again_afterwards(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("some.library")
    with silenced("some.library"):
        logger.error("raised as well")
    logger.error("heard")
    assert [entry.message for entry in caplog.records] == ["heard"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("GET https://shop.example/a.jpg?token=hunter2&x=1 failed", "GET https://shop.example/a.jpg?… failed"),
        ("https://user:hunter2@shop.example/a.jpg", "https://shop.example/a.jpg"),
        ("https://hunter2@shop.example:8443/#hunter2", "https://shop.example:8443/#…"),
        ("s3://bucket/prefix can't be written", "s3://bucket/prefix can't be written"),
        ("signed with whsec_aHVudGVyMg==, as said", "signed with whsec_…, as said"),
        ("Authorization: Bearer hunter2", "Authorization: Bearer …"),
        ("two: http://a/?hunter2 http://b/?hunter2", "two: http://a/?… http://b/?…"),
        ("what? no URL at all: 1 @ 2 #3", "what? no URL at all: 1 @ 2 #3"),
    ],
)
def test_a_log_line_keeps_what_is_secret_to_itself(text: str, told: str) -> None:
    assert redacted(text) == told


# What stands in URLs: no space, and what ends a part of them only where it may.
_PART = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="/?#@"), min_size=1, max_size=20)


@given(_PART, _PART, _PART, _PART)
def test_redaction_hides_password_query_and_fragment(user: str, path: str, query: str, before: str) -> None:
    secret = "hunter2"
    told = redacted(f"{before} https://{user}:{secret}@shop.example/{path}?{query}={secret}#{secret} after")
    assert secret not in told
    assert told.endswith(" after")
    assert f"https://shop.example/{path}?…" in told


@given(st.text())
def test_redaction_is_idempotent_for_any_text(text: str) -> None:
    assert redacted(redacted(text)) == redacted(text)


class About(NamedTuple):
    """An event, as far as the log is concerned."""

    request_id: str
    id: str

    def log_fields(self) -> dict[str, str]:
        return {"request_id": self.request_id, "event_id": self.id}


def lines_of(code: Callable[[], None], *, terminal: bool = False) -> list[str]:
    """What ``code`` logs, as our processes write it."""
    written = Terminal() if terminal else io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", written)
        root = logging.getLogger()
        before = root.handlers, root.level
        try:
            configure_logging("INFO")
            contextvars.copy_context().run(code)
        finally:
            root.handlers, root.level = before[0], before[1]
            structlog.reset_defaults()
    return written.getvalue().splitlines()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_log_line_has_ids_of_current_event() -> None:
    def code() -> None:
        log = structlog.get_logger("test")
        log.info("before")
        log_about(About("request-1", "event-1"))
        log.info("in it")
        logging.getLogger("some.library").warning("in it as well")
        log.info("of another", request_id="request-2")
        log_about(About("request-3", "event-3"))
        log.info("later")

    lines = [json.loads(line) for line in lines_of(code)]
    assert [(line["event"], line.get("request_id"), line.get("event_id")) for line in lines] == [
        ("before", None, None),
        ("in it", "request-1", "event-1"),
        ("in it as well", "request-1", "event-1"),
        ("of another", "request-2", None),
        ("later", "request-3", "event-3"),
    ]


@pytest.mark.parametrize("terminal", [False, True])
def test_no_secret_is_logged_wherever_it_stands(terminal: bool) -> None:
    url = "https://user:hunter2@shop.example/a?key=hunter2"

    def code() -> None:
        log = structlog.get_logger("test")
        log.info(f"fetching {url}", url=url, all=[url, {"url": url}], error=ValueError(url))
        logging.getLogger("some.library").warning("can't reach %s", url)
        try:
            int(url)
        except ValueError:
            log.exception("failed")

    lines = lines_of(code, terminal=terminal)
    assert "hunter2" not in "".join(lines)
    assert any("Traceback" in line for line in lines)
    if not terminal:
        said = "".join(str(json.loads(line)) for line in lines)
        assert said.count("https://shop.example/a?…") == 7


class Order:
    """Something that lines are about."""

    def __init__(self) -> None:
        self.asked = 0

    def log_fields(self) -> dict[str, str]:
        self.asked += 1
        return {"order": "4711", "trace_id": "abc"}


async def test_event_ids_are_bound_to_their_task(capsys: pytest.CaptureFixture[str]) -> None:
    order = Order()

    async def work() -> None:
        log_about(order)
        assert order.asked == 0, "nothing is worked out before there is a line"
        structlog.get_logger("ours").info("begun", trace_id="of the line")
        logging.getLogger("theirs").warning("hear, hear")

    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        configure_logging("INFO")
        await asyncio.create_task(work())
        structlog.get_logger("ours").info("done")
    finally:
        root.handlers, root.level = before, level
        structlog.reset_defaults()
    begun, heard, done = map(json.loads, capsys.readouterr().err.splitlines())
    assert (begun["event"], begun["order"], begun["trace_id"]) == ("begun", "4711", "of the line")
    assert (heard["event"], heard["order"], heard["trace_id"]) == ("hear, hear", "4711", "abc")
    assert "order" not in done
