"""Topic names: others read them, and Faust derives one of them by a rule of its own."""

from typing import get_args

import pytest
from aiokafka.partitioner import DefaultPartitioner
from hypothesis import given
from hypothesis import strategies as st

from infra.kafka import partition_of
from streams.events import EVENT_CLASSES, TopicName
from streams.topics import KEEP_FOREVER, LATEST_BY_KEY, PROGRESS_TABLE, Topics


def test_the_names_are_those_that_the_outside_was_promised() -> None:
    topics = Topics()
    assert topics.requests == "shrinkstream.requests"
    assert topics.image_requests == "shrinkstream.image-requests"
    assert topics.image_results == "shrinkstream.image-results"
    assert topics.webhooks == "shrinkstream.webhooks"
    assert topics.dead_letters == "shrinkstream.dead-letters"


def test_the_changelog_is_named_as_faust_names_it() -> None:
    """Faust: ``<app id>-<table name>-changelog``."""
    topics = Topics("two")
    assert topics.progress_changelog == f"{topics.group('progress')}-{PROGRESS_TABLE}-changelog"


@pytest.mark.parametrize("event", EVENT_CLASSES)
def test_every_event_has_a_topic_that_init_creates(event: type) -> None:
    topics = Topics("two")
    assert getattr(topics, event.topic) in topics.configs()  # type: ignore[attr-defined]  # a type of events


def test_events_are_kept_for_ever_and_only_the_changelog_is_compacted() -> None:
    topics = Topics("two")
    compacted = {name for name, config in topics.configs().items() if config == LATEST_BY_KEY}
    assert compacted == {topics.progress_changelog}
    assert {name for name, config in topics.configs().items() if config == KEEP_FOREVER} == {
        *(getattr(topics, name) for name in get_args(TopicName)),
        topics.dead_letters,
    }


def test_two_systems_on_one_cluster_share_nothing() -> None:
    one, two = Topics("one"), Topics("two")
    assert not set(one.configs()) & set(two.configs())
    assert one.group("progress") != two.group("progress")


@given(st.binary(max_size=80), st.integers(1, 1024))
def test_a_key_belongs_into_the_partition_that_every_kafka_client_puts_it_into(key: bytes, partitions: int) -> None:
    assert partition_of(key, partitions) == DefaultPartitioner()(key, list(range(partitions)), [])
