"""``shrinkstream init``: creates topics, keyspace and tables."""

from infra.cassandra.schema import migrate
from infra.kafka.topics import create_topics, grow_topic
from infra.settings import Settings
from streams.log.topics import Topics


async def initialise(settings: Settings, image_partitions: int | None = None) -> list[str]:
    """Create missing topics, keyspace and tables; returns the names of those created.

    Raises InsyncReplicasError if an existing topic could lose acknowledged events, or refuses all.

    ``image_partitions``: minimum partitions of the image-requests topic. It can grow at any time, even with requests
    in flight: no reader depends on an image's partition, because RequestCreated has the offsets of its images. All
    other topics are partitioned by request id and keep their partition count: if it changed, the events of a request
    would be split between two workers.
    """
    topics = Topics(settings.topic_prefix)
    created = await create_topics(settings, topics.configs())
    if image_partitions is not None and await grow_topic(settings, topics.image_requests, image_partitions):
        created.append(f"{image_partitions} partitions of {topics.image_requests}")
    return created + await migrate(settings)
