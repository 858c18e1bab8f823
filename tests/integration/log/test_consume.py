"""Records that are not consumed as events go to the dead-letter topic, with their origin."""

from types import SimpleNamespace
from typing import Any

import pytest

from infra.settings import Settings
from streams.events.base import Event
from streams.log import consume as module
from streams.log.producer import EventLog
from streams.log.topics import Topics
from tests.support.examples import created
from tests.support.topic_reader import records_in


async def test_given_up_event_becomes_a_dead_letter(
    kafka_settings: Settings, request_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = created(request_id)
    topics = Topics(kafka_settings.topic_prefix)
    log = EventLog(kafka_settings)
    await log.start()

    async def one_record(_stream: Any, on_record: Any, **_options: Any) -> None:
        place: dict[str, Any] = {"topic": topics.requests, "partition": 1, "offset": 7}
        await on_record(SimpleNamespace(message=SimpleNamespace(value=event.encode(), key=event.key, **place)))

    async def on_event(found: Event) -> str | None:
        return "it failed 6 times" if found == event else None

    monkeypatch.setattr(module, "handle", one_record)
    stream: Any = None
    try:
        await module.consume(stream, log, on_event, in_flight=1, max_seconds=1)
    finally:
        await log.stop()
    (letter,) = await records_in(kafka_settings, topics.dead_letters, request_id)
    assert letter.value == event.encode()
    headers = dict(letter.headers)
    assert headers["dead-letter-error"] == b"it failed 6 times"
    assert headers["dead-letter-topic"] == topics.requests.encode()
    assert (headers["dead-letter-partition"], headers["dead-letter-offset"]) == (b"1", b"7")
