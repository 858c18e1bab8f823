"""Kafka as this system uses it: connection options, one durable producer, topics made and checked."""

import asyncio
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache, partial
from typing import Any, Protocol

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code
from aiokafka.structs import RecordMetadata, TopicPartition

from infra import metrics
from infra.cancellation import no_stray_cancellation
from infra.errors import ExplainedError
from infra.logs import silenced
from infra.settings import Settings

Headers = Iterable[tuple[str, bytes]]

REQUEST_TIMEOUT_MS = 30_000
SETTLE_SECONDS = 0.2  # between two looks at what a cluster doesn't know yet


class KafkaUnavailableError(ExplainedError):
    """The brokers can't be reached or refuse us; the message names them."""


class MissingTopicsError(ExplainedError):
    """Topics that `shrinkstream init` creates are not there; the message names them."""


class PartitionsError(ExplainedError):
    """A topic can't have the partitions that are asked for; the message says why."""


def require_brokers(settings: Settings) -> str:
    """The bootstrap servers, or a KafkaUnavailableError that says how to get some."""
    if not settings.kafka_brokers:
        raise KafkaUnavailableError(
            "SHRINKSTREAM_KAFKA_BROKERS is not set (only `shrinkstream up` and `demo` start a Kafka of their own)"
        )
    return settings.kafka_brokers


def ssl_context(settings: Settings) -> ssl.SSLContext | None:
    """The TLS context for the brokers, or None where the security protocol has no TLS."""
    if settings.kafka_security_protocol not in ("SSL", "SASL_SSL"):
        return None
    try:
        context = ssl.create_default_context(cafile=settings.kafka_ssl_cafile)
        if settings.kafka_ssl_certfile:
            context.load_cert_chain(settings.kafka_ssl_certfile, settings.kafka_ssl_keyfile)
    except (OSError, ssl.SSLError) as error:
        raise KafkaUnavailableError(f"the certificates for Kafka can't be used: {error}") from None
    return context


class KafkaClient(Protocol):
    """What the consumers, producers and admin clients of aiokafka have in common."""

    async def start(self) -> None: ...


async def start_client(client: KafkaClient, timeout: float) -> None:
    """Start an aiokafka client; TimeoutError after ``timeout`` seconds.

    Trap: ``start()`` ends by making tasks. Where one is cancelled before its first step, ``stop()`` raises its
    CancelledError in the caller. Since Python 3.12 ``wait_for`` doesn't let the event loop turn in between.
    """
    await asyncio.wait_for(client.start(), timeout)
    await asyncio.sleep(0)


async def stop_client(stop: Callable[[], Awaitable[None]], timeout: float = REQUEST_TIMEOUT_MS / 1000 + 5) -> None:
    """Stop an aiokafka client; TimeoutError after ``timeout`` seconds, StrayCancellationError as in `start_client`."""
    with no_stray_cancellation():
        await asyncio.wait_for(stop(), timeout)


def connection_options(settings: Settings) -> dict[str, Any]:
    """What every aiokafka client of ours needs to reach the brokers."""
    options: dict[str, Any] = {
        "bootstrap_servers": require_brokers(settings),
        "security_protocol": settings.kafka_security_protocol,
        "ssl_context": ssl_context(settings),
        "client_id": "shrinkstream",
    }
    if settings.kafka_security_protocol.startswith("SASL"):
        password = settings.kafka_sasl_password
        options |= {
            "sasl_mechanism": settings.kafka_sasl_mechanism,
            "sasl_plain_username": settings.kafka_sasl_username,
            "sasl_plain_password": password.get_secret_value() if password else None,
        }
    return options


def unreachable(settings: Settings, error: Exception, said: Sequence[str] = ()) -> KafkaUnavailableError:
    """``said``: what aiokafka logged, which has the cause where its error only says that no broker answered."""
    cause = (said[-1] if said else str(error) or "no answer").splitlines()[0]
    return KafkaUnavailableError(f"Kafka can't be reached at {settings.kafka_brokers}: {cause}")


class Producer:
    """Writes records that are either acknowledged by all in-sync replicas, once and in order, or an error."""

    def __init__(self, settings: Settings, linger_ms: int = 2) -> None:
        """``linger_ms``: how long a record waits for others to travel with it."""
        self._settings = settings
        self._linger_ms = linger_ms
        self._client: AIOKafkaProducer | None = None
        self._turns: defaultdict[tuple[str, int], asyncio.Lock] = defaultdict(asyncio.Lock)

    async def start(self) -> None:
        client = AIOKafkaProducer(
            **connection_options(self._settings),
            acks="all",
            enable_idempotence=True,
            linger_ms=self._linger_ms,
            max_batch_size=128 * 1024,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
        )
        try:
            with silenced("aiokafka") as said:
                await start_client(client, REQUEST_TIMEOUT_MS / 1000)
        except (KafkaError, OSError, TimeoutError) as error:
            await stop_client(client.stop)
            raise unreachable(self._settings, error, said) from None
        self._client = client

    async def stop(self) -> None:
        if self._client is not None:
            await stop_client(self._client.stop)

    async def partition_count(self, topic: str) -> int:
        assert self._client is not None, "the producer is not started"
        return len(await self._client.partitions_for(topic))

    async def send(
        self, topic: str, key: bytes | None, value: bytes, headers: Headers = (), *, partition: int | None = None
    ) -> "asyncio.Future[RecordMetadata]":
        """Put a record into the buffer, waiting for room; the future is done when the brokers have it."""
        assert self._client is not None, "the producer is not started"
        future: asyncio.Future[RecordMetadata] = await self._client.send(
            topic, value=value, key=key, partition=partition, headers=list(headers)
        )
        _produced_to(topic).inc()
        future.add_done_callback(_noting_failure_at(topic))
        return future

    def new_batch(self) -> "Batch":
        """Records for one partition, to be put together in any thread: many times cheaper than one by one."""
        assert self._client is not None, "the producer is not started"
        return Batch(self._client.create_batch())

    async def send_batch(self, batch: "Batch", topic: str, partition: int) -> "asyncio.Future[RecordMetadata]":
        """Put a batch into the buffer, waiting for room; the future tells the offset of its first record."""
        assert self._client is not None, "the producer is not started"
        # aiokafka 0.14 keeps one batch of a partition waiting. Of several who wait for that place it wakes all, and
        # counts the time that they have waited again at each wake-up, until they fail after a second.
        async with self._turns[topic, partition]:
            future: asyncio.Future[RecordMetadata] = await self._client.send_batch(
                batch.builder, topic, partition=partition
            )
        _produced_to(topic).inc(batch.count)
        future.add_done_callback(_noting_failure_at(topic))
        return future


_produced_to = cache(metrics.PRODUCED.labels)


@cache
def _noting_failure_at(topic: str) -> Callable[["asyncio.Future[RecordMetadata]"], None]:
    return partial(_note_failure, topic)


def _note_failure(topic: str, written: "asyncio.Future[RecordMetadata]") -> None:
    if written.cancelled() or written.exception() is not None:
        metrics.PRODUCE_ERRORS.labels(topic).inc()


class Batch:
    """Records that travel together to one partition."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def append(self, key: bytes, value: bytes, headers: Headers) -> bool:
        """Add a record; False: there is no room for it. The first one fits whatever its size."""
        return self.builder.append(timestamp=None, key=key, value=value, headers=list(headers)) is not None

    @property
    def size(self) -> int:
        """Bytes so far."""
        return int(self.builder.size())

    @property
    def count(self) -> int:
        return int(self.builder.record_count())


@asynccontextmanager
async def admin_client(settings: Settings, timeout: float = 15) -> AsyncIterator[AIOKafkaAdminClient]:
    """An admin client that is connected, or KafkaUnavailableError within ``timeout`` seconds."""
    admin = AIOKafkaAdminClient(**connection_options(settings), request_timeout_ms=REQUEST_TIMEOUT_MS)
    try:
        try:
            with silenced("aiokafka") as said:
                await start_client(admin, timeout)
        except (KafkaError, OSError, TimeoutError) as error:
            raise unreachable(settings, error, said) from None
        yield admin
    finally:
        await stop_client(admin.close)


async def create_topics(settings: Settings, configs: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Create the topics that are missing; returns their names. What exists is left as it is."""
    async with admin_client(settings) as admin:
        existing = set(await admin.list_topics())
        wanted = [
            NewTopic(
                name,
                num_partitions=settings.partitions,
                replication_factor=settings.kafka_replication_factor,
                topic_configs=dict(config),
            )
            for name, config in configs.items()
            if name not in existing
        ]
        if not wanted:
            return []
        answer = await admin.create_topics(wanted)
        for name, code, *message in answer.topic_errors:
            error = for_code(code)
            if error not in (TopicAlreadyExistsError, for_code(0)):
                raise KafkaUnavailableError(f"topic {name} can't be created: {error.__name__} {message}")
        return [topic.name for topic in wanted]


async def grow_topic(settings: Settings, topic: str, partitions: int) -> bool:
    """Give a topic more partitions; False where it has as many. The keys that it holds must not matter to anyone.

    Raises PartitionsError where it has more already, KafkaUnavailableError where the brokers refuse.
    """
    async with admin_client(settings) as admin, asyncio.timeout(REQUEST_TIMEOUT_MS / 1000):
        present = len(await partitions_of(admin, topic))
        if partitions < present:
            raise PartitionsError(f"{topic} has {present} partitions, and Kafka takes none away")
        if partitions == present:
            return False
        try:
            await admin.create_partitions({topic: NewPartitions(total_count=partitions)})
        except KafkaError as error:
            raise KafkaUnavailableError(f"{topic} can't be given {partitions} partitions: {error}") from None
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
    """Raise MissingTopicsError unless each topic has so many partitions: by their number a key's place is known."""
    try:
        async with asyncio.timeout(REQUEST_TIMEOUT_MS / 1000), admin_client(settings) as admin:
            found = {name: len(await partitions_of(admin, name)) for name in sorted(names)}
    except TimeoutError as error:
        raise unreachable(settings, error) from None
    wrong = {name: partitions for name, partitions in found.items() if partitions != count}
    if wrong:
        raise MissingTopicsError(
            f"SHRINKSTREAM_PARTITIONS is {count}, but there are others of {wrong}: it must be what these topics were"
            " made with, which is for ever (image-requests alone can grow)"
        )


async def partitions_of(admin: AIOKafkaAdminClient, topic: str) -> list[TopicPartition]:
    """All partitions of a topic, in order. The caller bounds the wait for a topic that was made a moment ago."""
    while True:
        (description,) = await admin.describe_topics([topic])
        if description["partitions"]:
            return sorted(TopicPartition(topic, entry["partition"]) for entry in description["partitions"])
        # Brokers know a topic a moment after its creation. Without its partitions a reader would see nothing.
        await asyncio.sleep(SETTLE_SECONDS)


async def committed_offsets(
    admin: AIOKafkaAdminClient, group: str, partitions: Iterable[TopicPartition]
) -> dict[TopicPartition, int]:
    """How far a consumer group has got; -1 where it has not begun. The caller bounds the wait for an answer."""
    wanted = list(partitions)
    while True:
        try:
            committed = await admin.list_consumer_group_offsets(group, partitions=wanted)
        except KafkaError as error:
            # A cluster that was never used chooses a coordinator when it is asked for one first.
            if not error.retriable:
                raise
        else:
            # One that has just started leaves out what it has not loaded yet; aiokafka 0.14 hides the error.
            if committed.keys() >= set(wanted):
                return {partition: committed[partition].offset for partition in wanted}
        await asyncio.sleep(SETTLE_SECONDS)


async def commit_offsets(settings: Settings, group: str, offsets: Mapping[TopicPartition, int]) -> None:
    """Remember how far a group without members has got. Raises KafkaUnavailableError."""
    consumer = AIOKafkaConsumer(**connection_options(settings), group_id=group, enable_auto_commit=False)
    consumer.assign(list(offsets))
    try:
        async with asyncio.timeout(REQUEST_TIMEOUT_MS / 1000):
            await start_client(consumer, REQUEST_TIMEOUT_MS / 1000)
            await consumer.commit(dict(offsets))
    except (KafkaError, OSError, TimeoutError) as error:
        raise unreachable(settings, error) from None
    finally:
        await stop_client(consumer.stop)
