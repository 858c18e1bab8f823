import asyncio
import json
import logging

import pytest
import structlog

from infra import logs
from infra.logs import NoRepeats, configure_logging, log_about, silenced


def record(message: str) -> logging.LogRecord:
    return logging.LogRecord("aiokafka", logging.ERROR, "", 0, message, None, None)


def test_the_same_message_is_let_through_again_only_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    repeats = NoRepeats()
    assert [repeats.filter(record(message)) for message in ("away", "away", "other", "away")] == [
        True,
        False,
        True,
        False,
    ]
    monkeypatch.setattr(logs, "REPEATS_EVERY", 0.0)
    assert repeats.filter(record("away"))


def test_a_silenced_library_speaks_again_afterwards(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("some.library")
    with silenced("some.library"):
        logger.error("raised as well")
    logger.error("heard")
    assert [entry.message for entry in caplog.records] == ["heard"]


class Order:
    """Something that lines are about."""

    def __init__(self) -> None:
        self.asked = 0

    def log_fields(self) -> dict[str, str]:
        self.asked += 1
        return {"order": "4711", "trace_id": "abc"}


def test_lines_say_what_they_are_about_and_only_in_the_task_that_is(capsys: pytest.CaptureFixture[str]) -> None:
    order = Order()

    async def work() -> None:
        log_about(order)
        assert order.asked == 0, "nothing is worked out before there is a line"
        structlog.get_logger("ours").info("begun", trace_id="of the line")
        logging.getLogger("theirs").warning("hear, hear")

    async def both() -> None:
        await asyncio.create_task(work())
        structlog.get_logger("ours").info("done")

    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        configure_logging("INFO")
        asyncio.run(both())
    finally:
        root.handlers, root.level = before, level
        structlog.reset_defaults()
    begun, heard, done = map(json.loads, capsys.readouterr().err.splitlines())
    assert (begun["event"], begun["order"], begun["trace_id"]) == ("begun", "4711", "of the line")
    assert (heard["event"], heard["order"], heard["trace_id"]) == ("hear, hear", "4711", "abc")
    assert "order" not in done
