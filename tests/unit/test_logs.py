import logging

import pytest

from infra import logs
from infra.logs import NoRepeats, silenced


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
