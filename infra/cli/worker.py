"""``shrinkstream worker``: runs one Faust app."""

import asyncio
from importlib import import_module

from infra.cassandra.schema import require_schema
from infra.cassandra.session import Session
from infra.errors import EXIT_UNAVAILABLE, ExplainedError
from infra.faust.app import run_worker
from infra.kafka.topics import require_partitions, require_topics
from infra.settings import Settings
from infra.storage import Storage
from streams.log.topics import Topics


def run_app(name: str, settings: Settings) -> int:
    """Run ``compress``, ``progress`` or ``projections`` until it is stopped; returns the exit code.

    Checks its dependencies first, so that a missing one is reported in one line. Raises ExplainedError.
    """
    try:
        asyncio.run(_check_dependencies(name, settings))
    except ExplainedError as error:
        error.exit_code = EXIT_UNAVAILABLE
        raise
    return run_worker(import_module(f"streams.{name}").app)


async def _check_dependencies(name: str, settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    await require_topics(settings, topics.configs())
    await require_partitions(settings, topics.keyed_by_request, settings.partitions)
    if name in ("compress", "projections"):
        await Storage.of(settings).check()
    if name == "projections":
        session = await Session.connect(settings)
        try:
            await require_schema(session, settings.cassandra_keyspace)
        finally:
            await session.close()
