"""Creation, growth and checks of topics."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence

from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from infra.errors import ExplainedError
from infra.kafka.admin import METADATA_POLL, admin_client, partitions_of
from infra.kafka.client import REQUEST_TIMEOUT_MS, KafkaUnavailableError, unreachable
from infra.settings import Settings

MIN_INSYNC_REPLICAS = "min.insync.replicas"


class MissingTopicsError(ExplainedError):
    """Topics that `shrinkstream init` creates are missing; the message names them."""


class InsyncReplicasError(ExplainedError):
    """A topic's ``min.insync.replicas`` doesn't fit its replicas; the message says what to set."""


class PartitionsError(ExplainedError):
    """A topic can't have the requested number of partitions; the message says why."""


async def create_topics(settings: Settings, configs: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Create the missing topics; returns their names once they are listed. Existing topics are only checked.

    Raises KafkaUnavailableError or InsyncReplicasError.
    """
    async with admin_client(settings) as admin:
        existing = set(await admin.list_topics())
        await _require_insync_replicas(admin, sorted(existing & configs.keys()))
        missing = [
            NewTopic(
                name,
                num_partitions=settings.partitions,
                replication_factor=settings.kafka_replication_factor,
                topic_configs={
                    MIN_INSYNC_REPLICAS: str(min_insync_replicas(settings.kafka_replication_factor)),
                    **config,
                },
            )
            for name, config in configs.items()
            if name not in existing
        ]
        if not missing:
            return []
        response = await admin.create_topics(missing)
        for name, code, *message in response.topic_errors:
            error = for_code(code)
            if error not in (TopicAlreadyExistsError, for_code(0)):
                raise KafkaUnavailableError(f"topic {name} can't be created: {error.__name__} {message}")
        created = [topic.name for topic in missing]
        await _wait_until_listed(admin, settings, created)
        return created


async def _wait_until_listed(admin: AIOKafkaAdminClient, settings: Settings, topics: Iterable[str]) -> None:
    """Metadata propagates a moment after a topic's creation, and the processes that start next require the topics."""
    try:
        async with asyncio.timeout(REQUEST_TIMEOUT_MS / 1000):
            while not set(topics) <= set(await admin.list_topics()):  # noqa: ASYNC110 - on a server
                await asyncio.sleep(METADATA_POLL)
    except TimeoutError as error:
        raise unreachable(settings, error) from None


def min_insync_replicas(replicas: int) -> int:
    """All but one, so that acknowledged records survive a lost broker and writes go on without it; at least one."""
    return max(1, replicas - 1)


def insync_replicas_problem(replicas: int, minimum: int) -> str | None:
    """The fault of a topic's ``min.insync.replicas``; None if it fits its number of replicas."""
    if minimum > replicas:
        return f"{MIN_INSYNC_REPLICAS} is {minimum} for {replicas} replicas, so that no write can succeed"
    if minimum < min_insync_replicas(replicas):
        return f"{MIN_INSYNC_REPLICAS} is {minimum} for {replicas} replicas, so that a lost broker may lose events"
    return None


async def _require_insync_replicas(admin: AIOKafkaAdminClient, topics: Sequence[str]) -> None:
    if not topics:
        return
    replicas = {
        each["topic"]: min((len(partition["replicas"]) for partition in each["partitions"]), default=0)
        for each in await admin.describe_topics(list(topics))
    }
    asked = [ConfigResource(ConfigResourceType.TOPIC, topic, {MIN_INSYNC_REPLICAS: ""}) for topic in topics]
    for response in await admin.describe_configs(asked):
        for _, _, _, topic, entries in response.resources:
            for name, value, *_ in entries:
                # A topic that was created just now by another process may have no metadata yet.
                if name != MIN_INSYNC_REPLICAS or not replicas[topic]:
                    continue
                if problem := insync_replicas_problem(replicas[topic], int(value)):
                    wanted = min_insync_replicas(replicas[topic])
                    raise InsyncReplicasError(
                        f"topic {topic}: {problem}; set it with `kafka-configs.sh --bootstrap-server … --alter"
                        f" --topic {topic} --add-config {MIN_INSYNC_REPLICAS}={wanted}`"
                    )


async def grow_topic(settings: Settings, topic: str, partitions: int) -> bool:
    """Add partitions to a topic; False if it has ``partitions`` already. No reader may depend on its partitioning.

    Raises PartitionsError if it has more already, KafkaUnavailableError if the brokers refuse.
    """
    async with admin_client(settings) as admin, asyncio.timeout(REQUEST_TIMEOUT_MS / 1000):
        present = len(await partitions_of(admin, topic))
        if partitions < present:
            raise PartitionsError(f"{topic} has {present} partitions, and Kafka can't remove partitions")
        if partitions == present:
            return False
        try:
            await admin.create_partitions({topic: NewPartitions(total_count=partitions)})
        except KafkaError as error:
            raise KafkaUnavailableError(f"cannot grow {topic} to {partitions} partitions: {error}") from None
        return True


async def require_topics(settings: Settings, names: Iterable[str]) -> None:
    """Raise MissingTopicsError unless every topic exists."""
    async with admin_client(settings) as admin:
        missing = sorted(set(names) - set(await admin.list_topics()))
    if missing:
        raise MissingTopicsError(
            f"missing on {settings.kafka_brokers}: {', '.join(missing)}; `shrinkstream init` creates them"
        )


async def require_partitions(settings: Settings, names: Iterable[str], count: int) -> None:
    """Raise MissingTopicsError unless each topic has ``count`` partitions: partitioners depend on their number."""
    try:
        async with asyncio.timeout(REQUEST_TIMEOUT_MS / 1000), admin_client(settings) as admin:
            found = {name: len(await partitions_of(admin, name)) for name in sorted(names)}
    except TimeoutError as error:
        raise unreachable(settings, error) from None
    wrong = {name: partitions for name, partitions in found.items() if partitions != count}
    if wrong:
        raise MissingTopicsError(
            f"SHRINKSTREAM_PARTITIONS is {count}, but topics have other partition counts: {wrong}; set it to the number"
            " that they were created with (it can't change later; only image-requests can grow)"
        )
