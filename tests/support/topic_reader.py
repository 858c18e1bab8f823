"""What is on a topic, from the first record to the last there is now."""

import time
from typing import Any, TypeAlias

import confluent_kafka as other
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from infra.settings import Settings
from streams.events.base import Event
from streams.events.registry import decode
from tests.support.waiting import wait_until

Record: TypeAlias = ConsumerRecord[bytes, bytes]


async def records_in(settings: Settings, topic: str, request_id: str | None = None) -> list[Record]:
    """The records of a topic, all or those of one request, each partition in its order."""
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka_brokers, enable_auto_commit=False)
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, number) for number in range(settings.partitions)]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        missing = sum((await consumer.end_offsets(partitions)).values())
        records: list[Record] = []
        while len(records) < missing:
            batches = await consumer.getmany(timeout_ms=1000)
            records += [record for batch in batches.values() for record in batch]
        return [record for record in records if request_id is None or record.key == request_id.encode()]
    finally:
        await consumer.stop()


async def events_in(settings: Settings, topic: str, request_id: str | None = None) -> list[Event]:
    return [decode(record.value) for record in await records_in(settings, topic, request_id)]


def read_topic(address: str, topic: str, statistics: list[str] | None = None) -> list[Any]:
    """Every record of a topic, read by a client library that shares no code with ours.

    ``statistics`` gets librdkafka's, as JSON; the last one includes all records.
    """
    reporting = {} if statistics is None else {"statistics.interval.ms": 50, "stats_cb": statistics.append}
    consumer = other.Consumer(
        {"bootstrap.servers": address, "group.id": "somebody-else", "enable.auto.commit": False, **reporting}
    )
    try:
        partitions = consumer.list_topics(topic, timeout=60).topics[topic].partitions
        ends = {n: consumer.get_watermark_offsets(other.TopicPartition(topic, n), timeout=60)[1] for n in partitions}
        consumer.assign([other.TopicPartition(topic, n, 0) for n in partitions])
        records: list[Any] = []
        while len(records) < sum(ends.values()):
            record = consumer.poll(10)
            assert record is not None, f"{len(records)} of {sum(ends.values())} records"
            assert record.error() is None
            records.append(record)
        if statistics is not None:
            deadline, so_far = time.monotonic() + 60, len(statistics)
            while len(statistics) < so_far + 2:  # one may have been made before the last record
                assert time.monotonic() < deadline, "no statistics"
                consumer.poll(0.1)
        return records
    finally:
        consumer.close()


def wait_until_read(address: str, group: str, *topics: str) -> None:
    """Return once a consumer group has committed all that is on some topics."""
    consumer = other.Consumer({"bootstrap.servers": address, "group.id": group, "enable.auto.commit": False})
    try:
        places = [
            other.TopicPartition(topic, number)
            for topic in topics
            for number in consumer.list_topics(topic, timeout=60).topics[topic].partitions
        ]

        def is_read() -> bool:
            committed = {(one.topic, one.partition): one.offset for one in consumer.committed(places, timeout=60)}
            ends = {(one.topic, one.partition): consumer.get_watermark_offsets(one, timeout=60)[1] for one in places}
            return all(max(0, committed[place]) >= end for place, end in ends.items())

        wait_until(is_read, f"{group} has read {topics}")
    finally:
        consumer.close()
