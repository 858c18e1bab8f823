"""Assignment of partitions to workers without tables."""

from types import SimpleNamespace

import pytest
from aiokafka.coordinator.protocol import ConsumerProtocolMemberMetadata

from infra.faust.consumer import GuardedConsumerThread

TOPICS = ["requests", "webhooks", "image-results", "progress"]


@pytest.mark.parametrize("partitions", [8, 32])
@pytest.mark.parametrize("workers", [1, 2, 3, 5, 6, 8, 11])
def test_worker_gets_the_same_partitions_of_each_topic(workers: int, partitions: int) -> None:
    app = SimpleNamespace(tables=SimpleNamespace(changelog_topics=set()))
    assignor = GuardedConsumerThread._assignor.fget(SimpleNamespace(app=app))  # type: ignore[attr-defined]
    cluster = SimpleNamespace(partitions_for_topic=lambda _: set(range(partitions)))
    members = {f"worker-{number}": ConsumerProtocolMemberMetadata(0, TOPICS, b"") for number in range(workers)}
    assigned = 0
    for member in assignor.assign(cluster, members).values():
        by_topic = {topic: sorted(numbers) for topic, numbers in member.assignment}
        assert len({tuple(numbers) for numbers in by_topic.values()}) <= 1
        assert by_topic.keys() in (set(TOPICS), set())
        assigned += len(by_topic.get("webhooks", []))
    assert assigned == partitions
