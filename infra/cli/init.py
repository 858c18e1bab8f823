"""``shrinkstream init``: what must be there before anything runs."""

from infra.cassandra.schema import migrate
from infra.kafka import create_topics, grow_topic
from infra.settings import Settings
from streams.topics import Topics


async def initialise(settings: Settings, image_partitions: int | None = None) -> list[str]:
    """Create what is missing of topics, keyspace and tables; returns what was made.

    ``image_partitions``: how many partitions the topic of waiting images is to have at least. It can grow at any
    time, also with requests under way: no reader depends on which partition an image is in, as each RequestCreated
    says where its own are. All other topics keep the number that they were made with: their partition is chosen by
    the request's id, and a request whose events moved to another one would be counted by two workers, each in part.
    """
    topics = Topics(settings.topic_prefix)
    made = await create_topics(settings, topics.configs())
    if image_partitions is not None and await grow_topic(settings, topics.image_requests, image_partitions):
        made.append(f"{image_partitions} partitions of {topics.image_requests}")
    return made + await migrate(settings)
