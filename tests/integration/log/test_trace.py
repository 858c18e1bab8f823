"""`shrinkstream trace` against a real Kafka: what it reads, and what not."""

import json
import os
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import pytest

from infra.settings import Settings, environment_of
from streams.events.base import Event, utc_now
from streams.log import request_records
from streams.log.producer import EventLog
from streams.log.reader import LogReader
from streams.log.request_records import find_created
from streams.log.topics import Topics
from tests.support.console_script import shrinkstream
from tests.support.examples import created, failed, processed, requested

pytestmark = pytest.mark.slow


async def write(settings: Settings, *events: Event) -> None:
    log = EventLog(settings, role="test")
    await log.start()
    try:
        for written in [await log.enqueue(event) for event in events]:
            await written
    finally:
        await log.stop()


def request_of(request_id: str, images: int) -> list[Event]:
    """A request of which the first image has its result, the second has failed, and the others have none."""
    now = utc_now()
    asked = [requested(request_id, index, time=now) for index in range(images)]
    offsets = {0: (0, 10_000), 1: (0, 10_000)}
    first, second, *_ = asked
    creation = created(request_id, total=images, rows=images, time=now, image_offsets=offsets)
    return [*asked, creation, processed(first), failed(second)]


def traced(settings: Settings, request_id: str, *options: str) -> list[dict[str, Any]]:
    environment = {**os.environ, **environment_of(settings)}
    ended = shrinkstream("trace", request_id, "--json", *options, environment=environment)
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


def names(lines: Sequence[dict[str, Any]]) -> list[str]:
    return [line["event"] for line in lines if line["kind"] == "event"]


async def test_trace_has_only_the_events_of_its_request(settings: Settings, request_id: str) -> None:
    others = [event for _ in range(20) for event in request_of(str(uuid4()), 2)]
    events = request_of(request_id, 4)
    await write(settings, *others, *events, *others, events[-1])
    head, *lines = traced(settings, request_id)
    assert (head["requestId"], head["status"], head["total"]) == (request_id, "processing", 4)
    assert head["traceId"] == request_id.replace("-", "")
    assert (head["events"], head["repeats"], head["leftOut"]) == (
        {"ImageRequested": 4, "RequestCreated": 1, "ImageProcessed": 1, "ImageFailed": 2},
        1,
        [],
    )
    assert sorted(names(lines)) == sorted(
        [*["ImageRequested"] * 4, "RequestCreated", "ImageProcessed", *["ImageFailed"] * 2]
    )
    told = [line for line in lines if line["kind"] == "event"]
    assert [line["written"] for line in told] == sorted(line["written"] for line in told)
    assert all(line["worker"].startswith("test@") for line in told)
    assert [line["repeat"] for line in told if line["event"] == "ImageFailed"] == [False, True]


async def test_large_request_is_summarised_unless_all_lines_are_requested(settings: Settings, request_id: str) -> None:
    await write(settings, *request_of(request_id, 400))
    _, *lines = traced(settings, request_id)
    assert names(lines) == ["RequestCreated"]
    assert sum(line["count"] for line in lines if line["kind"] == "events") == 402
    _, *lines = traced(settings, request_id, "--all")
    assert len(names(lines)) == 403


def test_trace_of_unknown_request_says_so(settings: Settings, request_id: str) -> None:
    ended = shrinkstream("trace", request_id, environment={**os.environ, **environment_of(settings)})
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith(f"shrinkstream: there is no RequestCreated of {request_id} on ")


@pytest.mark.parametrize(("most", "is_found"), [(1000, True), (200, False)])
async def test_search_for_old_request_is_backwards_and_bounded(
    settings: Settings, request_id: str, monkeypatch: pytest.MonkeyPatch, most: int, is_found: bool
) -> None:
    monkeypatch.setattr(request_records, "FIRST_READ", 16)
    topic = Topics(settings.topic_prefix).requests
    wanted = created(request_id)
    async with LogReader.open(settings) as reader:
        place = await reader.partition_of(topic, wanted.key)
        log = EventLog(settings)
        await log.start()
        try:
            for event in (wanted, *(created(str(uuid4())) for _ in range(300))):
                await log.enqueue(event, partition=place.partition)
        finally:
            await log.stop()
        assert await find_created(reader, topic, request_id, most) == (wanted if is_found else None)


def test_trace_without_kafka_is_an_error_of_one_line(settings: Settings) -> None:
    variables = environment_of(settings)
    del variables["SHRINKSTREAM_KAFKA_BROKERS"]
    ended = shrinkstream("trace", "some-id", environment={**os.environ, **variables})
    assert ended.returncode == 1
    assert "SHRINKSTREAM_KAFKA_BROKERS is not set" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
