"""``shrinkstream init``: what must be there before anything runs."""

from infra.cassandra.schema import migrate
from infra.kafka import create_topics
from infra.settings import Settings
from streams.topics import Topics


async def initialise(settings: Settings) -> list[str]:
    """Create what is missing of topics, keyspace and tables; returns the names of what was made."""
    topics = await create_topics(settings, Topics(settings.topic_prefix).configs())
    return topics + await migrate(settings)
