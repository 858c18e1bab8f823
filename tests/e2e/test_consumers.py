"""What other programs see on Kafka, read by a client library that shares no code with ours."""

import json
from collections import Counter

from tests.e2e.conftest import System
from tests.support.topic_reader import read_topic


def test_independent_consumer_finds_each_demo_image_once(system: System, kafka_address: str) -> None:
    # Beside the running system, on the same servers: so it needs names of its own.
    name = f"{system.name}_demo"
    names = {"SHRINKSTREAM_TOPIC_PREFIX": name, "SHRINKSTREAM_CASSANDRA_KEYSPACE": name}
    demo = system.run("demo", timeout=240, **names)
    assert demo.returncode == 0, demo.stderr
    request_id = demo.stderr.split("request ")[1].split()[0]
    events = [
        (record, json.loads(record.value()))
        for record in read_topic(kafka_address, f"{name}.image-results")
        if record.key() == request_id.encode()
    ]
    for record, event in events:
        assert dict(record.headers())["content-type"] == b"application/cloudevents+json"
        assert event["specversion"] == "1.0"
        assert event["type"] == "shrinkstream.ImageProcessed.v1"
        assert event["datacontenttype"] == "application/json"
        assert event["subject"] == f"{request_id}/{event['data']['index']}"
        assert event["data"]["outputBytes"] < event["data"]["inputBytes"]
    assert Counter(event["data"]["index"] for _, event in events) == Counter(range(7))
    assert len({event["id"] for _, event in events}) == 7
    (completed,) = [
        json.loads(record.value())
        for record in read_topic(kafka_address, f"{name}.requests")
        if record.key() == request_id.encode() and b"RequestCompleted" in record.value()
    ]
    assert completed["data"]["total"] == completed["data"]["succeeded"] == 7
