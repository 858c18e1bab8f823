"""Kafka as this system uses it: connection options, one durable producer, topics made and checked."""

import asyncio
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code
from aiokafka.structs import RecordMetadata, TopicPartition

from infra.errors import ExplainedError
from infra.logs import silenced
from infra.settings import Settings

Headers = Iterable[tuple[str, bytes]]

REQUEST_TIMEOUT_MS = 30_000


class KafkaUnavailableError(ExplainedError):
    """The brokers can't be reached or refuse us; the message names them."""


class MissingTopicsError(ExplainedError):
    """Topics that `shrinkstream init` creates are not there; the message names them."""


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
    context = ssl.create_default_context(cafile=settings.kafka_ssl_cafile)
    if settings.kafka_ssl_certfile:
        context.load_cert_chain(settings.kafka_ssl_certfile, settings.kafka_ssl_keyfile)
    return context


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


def unreachable(settings: Settings, error: Exception) -> KafkaUnavailableError:
    return KafkaUnavailableError(f"Kafka can't be reached at {settings.kafka_brokers}: {error or 'no answer'}")


class Producer:
    """Writes records that are either acknowledged by all in-sync replicas, once and in order, or an error."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: AIOKafkaProducer | None = None
        self._turns: defaultdict[tuple[str, int], asyncio.Lock] = defaultdict(asyncio.Lock)

    async def start(self) -> None:
        client = AIOKafkaProducer(
            **connection_options(self._settings),
            acks="all",
            enable_idempotence=True,
            linger_ms=2,  # what is sent while a request is under way travels together anyway
            max_batch_size=128 * 1024,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
        )
        try:
            with silenced("aiokafka"):
                await asyncio.wait_for(client.start(), REQUEST_TIMEOUT_MS / 1000)
        except (KafkaError, OSError, TimeoutError) as error:
            await client.stop()
            raise unreachable(self._settings, error) from None
        self._client = client

    async def stop(self) -> None:
        if self._client is not None:
            await asyncio.wait_for(self._client.stop(), REQUEST_TIMEOUT_MS / 1000 + 5)

    async def send(
        self, topic: str, key: bytes | None, value: bytes, headers: Headers = (), *, partition: int | None = None
    ) -> "asyncio.Future[RecordMetadata]":
        """Put a record into the buffer, waiting for room; the future is done when the brokers have it."""
        assert self._client is not None, "the producer is not started"
        future: asyncio.Future[RecordMetadata] = await self._client.send(
            topic, value=value, key=key, partition=partition, headers=list(headers)
        )
        return future

    async def partitions_of(self, topic: str) -> int:
        """How many partitions a topic has."""
        assert self._client is not None, "the producer is not started"
        return len(await self._client.partitions_for(topic))

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
        return future


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


_HEAD = 36  # bytes: the request id, with which the keys of all its events begin
_WORD = 0xFFFFFFFF
_M = 0x5BD1E995


def partition_of(key: bytes, partitions: int) -> int:
    """The partition that every Kafka client puts a key into, unless told otherwise: by its murmur2 hash.

    The same as aiokafka's own, which costs as much as all the rest of writing an event, and more; this one
    remembers the hash of the head that many keys share.
    """
    length = len(key)
    head = min(length // 4 * 4, _HEAD)
    state = _hash_words(0x9747B28C ^ length, key[:head])
    whole = length // 4 * 4
    for place in range(head, whole, 4):
        state = _add_word(state, int.from_bytes(key[place : place + 4], "little"))
    if whole < length:
        state = (state ^ int.from_bytes(key[whole:], "little")) * _M & _WORD
    state = (state ^ state >> 13) * _M & _WORD
    return ((state ^ state >> 15) & 0x7FFFFFFF) % partitions


@lru_cache(maxsize=4096)
def _hash_words(state: int, words: bytes) -> int:
    for place in range(0, len(words), 4):
        state = _add_word(state, int.from_bytes(words[place : place + 4], "little"))
    return state


def _add_word(state: int, word: int) -> int:
    word = word * _M & _WORD
    return state * _M & _WORD ^ (word ^ word >> 24) * _M & _WORD


@asynccontextmanager
async def admin_client(settings: Settings, timeout: float = 15) -> AsyncIterator[AIOKafkaAdminClient]:
    """An admin client that is connected, or KafkaUnavailableError within ``timeout`` seconds."""
    admin = AIOKafkaAdminClient(**connection_options(settings), request_timeout_ms=REQUEST_TIMEOUT_MS)
    try:
        try:
            with silenced("aiokafka"):
                await asyncio.wait_for(admin.start(), timeout)
        except (KafkaError, OSError, TimeoutError) as error:
            raise unreachable(settings, error) from None
        yield admin
    finally:
        await admin.close()


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


async def require_topics(settings: Settings, names: Iterable[str]) -> None:
    """Raise MissingTopicsError unless every topic exists."""
    async with admin_client(settings) as admin:
        missing = sorted(set(names) - set(await admin.list_topics()))
    if missing:
        raise MissingTopicsError(
            f"missing on {settings.kafka_brokers}: {', '.join(missing)}; `shrinkstream init` creates them"
        )


async def group_is_working(settings: Settings, group: str) -> bool:
    """Whether the members of a consumer group have agreed on who reads which partition."""
    async with admin_client(settings) as admin:
        try:
            (answer,) = await admin.describe_consumer_groups([group])
        except KafkaError:  # while the group's coordinator is being chosen
            return False
    return any(state == "Stable" for _, _, state, *_ in answer.groups)


async def committed_offsets(settings: Settings, group: str) -> dict[TopicPartition, int]:
    """How far a consumer group has got; a partition that it has not begun is not there."""
    async with admin_client(settings) as admin:
        offsets = await admin.list_consumer_group_offsets(group)
    return {partition: entry.offset for partition, entry in offsets.items() if entry.offset >= 0}
