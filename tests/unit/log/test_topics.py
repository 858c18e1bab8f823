"""Topic names: others read them, and Faust derives one of them by a rule of its own."""

from typing import get_args

import faust
import pytest

from streams.events.base import TopicName
from streams.events.registry import EVENT_CLASSES
from streams.log.topics import KEEP_FOREVER, LATEST_BY_KEY, PROGRESS_TABLE, Topics


def test_the_names_are_those_that_the_outside_was_promised() -> None:
    topics = Topics()
    assert topics.requests == "shrinkstream.requests"
    assert topics.image_requests == "shrinkstream.image-requests"
    assert topics.image_results == "shrinkstream.image-results"
    assert topics.webhooks == "shrinkstream.webhooks"
    assert topics.dead_letters == "shrinkstream.dead-letters"


def test_changelog_has_the_name_that_faust_gives_it() -> None:
    topics = Topics("two")
    table = faust.App(topics.group("progress")).Table(PROGRESS_TABLE)
    assert table.changelog_topic.get_topic_name() == topics.progress_changelog


@pytest.mark.parametrize("event", EVENT_CLASSES)
def test_every_event_has_a_topic_that_init_creates(event: type) -> None:
    topics = Topics("two")
    assert getattr(topics, event.topic) in topics.configs()  # type: ignore[attr-defined]  # a type of events


def test_facts_are_kept_and_commands_are_not() -> None:
    topics = Topics("two")
    compacted = {name for name, config in topics.configs().items() if config == LATEST_BY_KEY}
    assert compacted == {topics.progress_changelog}
    assert {name for name, config in topics.configs().items() if config == KEEP_FOREVER} == {
        *(getattr(topics, name) for name in get_args(TopicName) if name != "maintenance"),
        topics.dead_letters,
    }
    assert topics.configs()[topics.maintenance]["retention.ms"] == str(7 * 24 * 60 * 60 * 1000)


def test_two_systems_on_one_cluster_share_nothing() -> None:
    one, two = Topics("one"), Topics("two")
    assert not set(one.configs()) & set(two.configs())
    assert one.group("progress") != two.group("progress")
