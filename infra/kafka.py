"""Kafka client: connection options, an idempotent producer, administration of topics and offsets."""

import asyncio
import logging
import ssl
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache, partial
from typing import Any, Protocol

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    ProducerClosed,
    TopicAlreadyExistsError,
    for_code,
)
from aiokafka.structs import RecordMetadata, TopicPartition

from infra.cancellation import cancel_and_wait, no_stray_cancellation, run_to_end
from infra.errors import ExplainedError
from infra.observability import metrics
from infra.observability.logs import silenced
from infra.settings import Settings

logger = structlog.get_logger(__name__)

# SASL_PLAINTEXT is the operator's choice, or that of `up` on loopback; not a warning for each connection.
logging.getLogger("aiokafka.conn").addFilter(lambda record: record.msg != "Sending username and password in the clear")

Headers = Iterable[tuple[str, bytes]]

REQUEST_TIMEOUT_MS = 30_000
MIN_INSYNC_REPLICAS = "min.insync.replicas"
DELIVERY_TIMEOUT = 120.0
"""Seconds to the acknowledgement of a record, as Java's ``delivery.timeout.ms``."""
DELIVERY_CHECK = 0.25  # interval (s) of the check for records that are not acknowledged in time
RECONNECT_TIMEOUT = 5.0
RECONNECT_INTERVAL = 0.5  # seconds between two attempts to connect a new producer
ABORT_TIMEOUT = 5.0
COMPRESSION = "zstd"
"""Codec of all batches: fewer bytes than lz4 and snappy, and less CPU than gzip. aiokafka leaves a batch that doesn't
get smaller as it is."""
METADATA_POLL = 0.2  # poll interval (s) while the cluster's metadata lacks a new topic or coordinator


class KafkaUnavailableError(ExplainedError):
    """The brokers can't be reached or refuse the connection; the message names them."""


class MissingTopicsError(ExplainedError):
    """Topics that `shrinkstream init` creates are missing; the message names them."""


class InsyncReplicasError(ExplainedError):
    """A topic's ``min.insync.replicas`` doesn't fit its replicas; the message says what to set."""


class PartitionsError(ExplainedError):
    """A topic can't have the requested number of partitions; the message says why."""


def require_brokers(settings: Settings) -> str:
    """The bootstrap servers; KafkaUnavailableError if none are set."""
    if not settings.kafka_brokers:
        raise KafkaUnavailableError(
            "SHRINKSTREAM_KAFKA_BROKERS is not set (only `shrinkstream up` and `demo` start a Kafka of their own)"
        )
    return settings.kafka_brokers


def ssl_context(settings: Settings) -> ssl.SSLContext | None:
    """The TLS context for the brokers; None if the security protocol has no TLS."""
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
    """Common interface of aiokafka's consumers, producers and admin clients."""

    def start(self) -> Coroutine[Any, Any, None]: ...


async def start_client(client: KafkaClient, timeout: float) -> None:
    """Start an aiokafka client; TimeoutError after ``timeout`` seconds.

    Trap: ``start()`` creates tasks as its last step. If one is cancelled before its first step, ``stop()`` raises its
    CancelledError in the caller. Since Python 3.12 ``wait_for`` doesn't yield to the event loop in between.
    Trap: a ``start()`` that is cancelled leaves its first connection open, so a cancellation waits for its end.
    """
    await run_to_end(client.start(), timeout)
    await asyncio.sleep(0)


async def stop_client(
    stop: Callable[[], Coroutine[Any, Any, None]], timeout: float = REQUEST_TIMEOUT_MS / 1000 + 5
) -> None:
    """Stop an aiokafka client, also if the caller is cancelled meanwhile: its connections would stay open.

    TimeoutError after ``timeout`` seconds, StrayCancellationError as in `start_client`.
    """
    with no_stray_cancellation():
        await run_to_end(stop(), timeout)


def connection_options(settings: Settings) -> dict[str, Any]:
    """Connection options of every aiokafka client."""
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
    """``said``: aiokafka's log messages, which have the cause if its error only says that no broker answered."""
    cause = (said[-1] if said else str(error) or "no answer").splitlines()[0]
    return KafkaUnavailableError(f"Kafka can't be reached at {settings.kafka_brokers}: {cause}")


class Producer:
    """Idempotent producer with acks=all: a record is acknowledged by all in-sync replicas, in order, or an error.

    aiokafka retries an idempotent batch for ever, and after a batch that failed for good the broker refuses every later
    one of that partition, because of the gap in the sequence numbers. So a record that is not acknowledged within
    ``delivery_timeout`` is an error, and after any error the client is replaced by one with a new producer id.
    """

    def __init__(self, settings: Settings, linger_ms: int = 2, delivery_timeout: float = DELIVERY_TIMEOUT) -> None:
        """``linger_ms``: how long a record waits for others to share its request.

        ``delivery_timeout``: seconds to buffer a record, and seconds from then to its acknowledgement.
        """
        self._settings = settings
        self._linger_ms = linger_ms
        self._delivery_timeout = delivery_timeout
        self._client: AIOKafkaProducer | None = None
        self._usable = asyncio.Event()
        # In the order of their buffering, with its time: the first is the oldest.
        self._pending: dict[asyncio.Future[RecordMetadata], tuple[float, AIOKafkaProducer]] = {}
        self._topics: set[str] = set()
        self._batch_locks: defaultdict[tuple[str, int], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._watch: asyncio.Task[None] | None = None
        self._replacement: asyncio.Task[None] | None = None
        self.problem: str | None = None
        """Why the last write failed; None once a write succeeds, or all partitions can be written again."""

    async def start(self) -> None:
        """Raises KafkaUnavailableError."""
        self._client = await self._connect(REQUEST_TIMEOUT_MS / 1000)
        self._usable.set()
        self._watch = asyncio.create_task(self._expire_deliveries(), name="producer deliveries")

    async def stop(self) -> None:
        """Wait for the acknowledgements of all buffered records, at most ``delivery_timeout``."""
        await cancel_and_wait(*(task for task in (self._watch, self._replacement) if task is not None))
        if self._client is None:
            return
        if not self._usable.is_set():
            await _abort(self._client, ProducerClosed())
            return
        try:
            await stop_client(self._client.stop, self._delivery_timeout + 1)
        except TimeoutError:
            logger.error("producer stopped with unacknowledged records", records=len(self._pending))
            await _abort(self._client, ProducerClosed())

    async def partition_count(self, topic: str) -> int:
        async with self._deadline():
            return len(await (await self._usable_client()).partitions_for(topic))

    async def send(
        self, topic: str, key: bytes | None, value: bytes, headers: Headers = (), *, partition: int | None = None
    ) -> "asyncio.Future[RecordMetadata]":
        """Append a record to the buffer, waiting while it is full; the future is done when the brokers acknowledge.

        Raises KafkaError: the record is not written. If the future raises one, the record may be written or not.
        """
        async with self._deadline():
            client = await self._usable_client()
            future: asyncio.Future[RecordMetadata] = await client.send(
                topic,
                value=value,
                key=key,
                partition=partition,
                timestamp_ms=_now_ms(),
                headers=list(headers),
            )
        self._track(future, client, topic)
        return future

    def new_batch(self) -> "Batch":
        """An empty batch of records for one partition, to be filled in any thread: far cheaper than single records."""
        assert self._client is not None, "the producer is not started"
        return Batch(self._client.create_batch())

    async def send_batch(self, batch: "Batch", topic: str, partition: int) -> "asyncio.Future[RecordMetadata]":
        """Append a batch to the buffer; as `send`. The future has the offset of its first record."""
        # aiokafka 0.14 buffers one batch per partition. It wakes all senders that wait for the buffer, and adds their
        # whole waiting time again at each wake-up, so that they time out after a second.
        async with self._deadline(), self._batch_locks[topic, partition]:
            client = await self._usable_client()
            future: asyncio.Future[RecordMetadata] = await client.send_batch(batch.builder, topic, partition=partition)
        self._track(future, client, topic, batch.count)
        return future

    @asynccontextmanager
    async def _deadline(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._delivery_timeout):
                yield
        except TimeoutError:
            raise KafkaTimeoutError(f"the producer's buffer was full for {self._delivery_timeout:g} s") from None

    async def _usable_client(self) -> AIOKafkaProducer:
        assert self._client is not None, "the producer is not started"
        if not self._usable.is_set():
            await self._usable.wait()
        return self._client

    def _track(
        self, future: "asyncio.Future[RecordMetadata]", client: AIOKafkaProducer, topic: str, count: int = 1
    ) -> None:
        _produced_to(topic).inc(count)
        self._topics.add(topic)
        self._pending[future] = (asyncio.get_running_loop().time(), client)
        future.add_done_callback(partial(self._settle, topic))

    def _settle(self, topic: str, future: "asyncio.Future[RecordMetadata]") -> None:
        _, client = self._pending.pop(future)
        error = None if future.cancelled() else future.exception()
        if error is not None or future.cancelled():
            metrics.PRODUCE_ERRORS.labels(topic).inc()
        if client is not self._client:
            return
        if error is not None:
            self._replace(client, error)
        elif not future.cancelled():
            self.problem = None

    async def _expire_deliveries(self) -> None:
        while True:
            await asyncio.sleep(DELIVERY_CHECK)
            oldest = next(iter(self._pending.values()), None)
            if oldest is not None and asyncio.get_running_loop().time() - oldest[0] > self._delivery_timeout:
                self._replace(oldest[1], KafkaTimeoutError(f"not acknowledged for {self._delivery_timeout:g} s"))

    def _replace(self, client: AIOKafkaProducer, error: BaseException) -> None:
        """Fail what the client has not delivered, and connect another one."""
        if client is not self._client or not self._usable.is_set():
            return  # it is being replaced
        if not isinstance(error, MessageSizeTooLargeError):  # which says nothing about Kafka
            self.problem = "the last write failed"
        self._usable.clear()
        logger.warning("replacing the Kafka producer after a failed write", error=repr(error))
        self._replacement = asyncio.create_task(self._reconnect(client, error), name="producer replacement")

    async def _reconnect(self, failed: AIOKafkaProducer, error: BaseException) -> None:
        await _abort(failed, error if isinstance(error, KafkaError) else KafkaError(repr(error)))
        while not self._usable.is_set():
            try:
                self._client = await self._connect(RECONNECT_TIMEOUT)
            except KafkaUnavailableError:
                await asyncio.sleep(RECONNECT_INTERVAL)
            else:
                self._usable.set()
        logger.info("Kafka producer replaced")
        # Without this a process that gets no work, because it is not ready, would never be ready again.
        assert self._client is not None
        await _wait_for_leaders(self._client, self._topics)
        self.problem = None

    async def _connect(self, timeout: float) -> AIOKafkaProducer:
        client = AIOKafkaProducer(
            **connection_options(self._settings),
            acks="all",
            enable_idempotence=True,
            linger_ms=self._linger_ms,
            max_batch_size=128 * 1024,
            compression_type=COMPRESSION,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
        )
        try:
            with silenced("aiokafka") as said:
                await start_client(client, timeout)
        except (KafkaError, OSError, TimeoutError) as error:
            await stop_client(client.stop)
            raise unreachable(self._settings, error, said) from None
        except asyncio.CancelledError:
            await stop_client(client.stop)
            raise
        return client


async def _abort(client: AIOKafkaProducer, error: KafkaError) -> None:
    """Stop a producer without another attempt to deliver what it has; all of that fails with ``error``.

    aiokafka's ``stop()`` delivers first, however long that takes. What is in a socket may still be written.
    """
    sender = client._sender.sender_task
    sender.cancel()
    for connection in client.client._conns.values():
        if connection.connected():
            connection._writer.transport.abort()  # drops what is buffered for a broker that doesn't read
    await asyncio.wait_for(client.client.close(), ABORT_TIMEOUT)
    if (metadata := client.client._md_update_fut) is not None and not metadata.done():
        metadata.set_result(False)  # the sender may wait for it, and nothing else would end that wait
    await asyncio.wait({sender}, timeout=ABORT_TIMEOUT)
    buffer = client._message_accumulator
    # aiokafka expects a batch there when its retry fails.
    buffer._pending_batches.update(batch for batches in buffer._batches.values() for batch in batches)
    buffer.fail_all(error)
    await stop_client(client.stop, ABORT_TIMEOUT)


async def _wait_for_leaders(client: AIOKafkaProducer, topics: Iterable[str]) -> None:
    """Wait until the brokers answer and every partition of these topics has a leader; its end is the client's."""
    while True:
        try:
            cluster = await asyncio.wait_for(client.client.fetch_all_metadata(), RECONNECT_TIMEOUT)
        except (KafkaError, OSError, TimeoutError) as error:
            logger.info("Kafka answers no metadata", error=repr(error))
        else:
            present, led = cluster.partitions_for_topic, cluster.available_partitions_for_topic
            if all(present(topic) == led(topic) for topic in topics):
                return
        await asyncio.sleep(RECONNECT_INTERVAL)


_produced_to = cache(metrics.PRODUCED.labels)


def _now_ms() -> int:
    """By Python's clock, as the times in events; aiokafka asks the operating system."""
    return int(time.time() * 1000)


class Batch:
    """A batch of records for one partition."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def append(self, key: bytes, value: bytes, headers: Headers) -> bool:
        """Add a record; False: the batch is full. The first record fits whatever its size."""
        taken = self.builder.append(timestamp=_now_ms(), key=key, value=value, headers=list(headers))
        return taken is not None

    @property
    def size(self) -> int:
        """Size in bytes."""
        return int(self.builder.size())

    @property
    def count(self) -> int:
        return int(self.builder.record_count())


@asynccontextmanager
async def admin_client(settings: Settings, timeout: float = 15) -> AsyncIterator[AIOKafkaAdminClient]:
    """A connected admin client; KafkaUnavailableError after ``timeout`` seconds."""
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
    """Metadata propagates a moment after a topic's creation, and who starts next requires the topics."""
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
    """What is wrong with ``min.insync.replicas`` of a topic; None if it fits its number of replicas."""
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


async def partitions_of(admin: AIOKafkaAdminClient, topic: str) -> list[TopicPartition]:
    """All partitions of a topic, in order. Waits for the metadata of a new topic; the caller sets the deadline."""
    while True:
        (description,) = await admin.describe_topics([topic])
        if description["partitions"]:
            return sorted(TopicPartition(topic, entry["partition"]) for entry in description["partitions"])
        # Metadata propagates a moment after a topic's creation; without partitions a reader would read nothing.
        await asyncio.sleep(METADATA_POLL)


async def committed_offsets(
    admin: AIOKafkaAdminClient, group: str, partitions: Iterable[TopicPartition]
) -> dict[TopicPartition, int]:
    """Committed offsets of a consumer group; -1 for none. Waits for the coordinator; the caller sets the deadline."""
    requested = list(partitions)
    while True:
        try:
            committed = await admin.list_consumer_group_offsets(group, partitions=requested)
        except KafkaError as error:
            # A new cluster elects a coordinator at the first request for one.
            if not error.retriable:
                raise
        else:
            # A restarted coordinator omits offsets that it has not loaded yet; aiokafka 0.14 hides the error.
            if committed.keys() >= set(requested):
                return {partition: committed[partition].offset for partition in requested}
        await asyncio.sleep(METADATA_POLL)


async def commit_offsets(settings: Settings, group: str, offsets: Mapping[TopicPartition, int]) -> None:
    """Commit offsets of a group without members. Raises KafkaUnavailableError."""
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
