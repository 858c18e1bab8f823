"""What other programs see on Kafka, read by a client library that shares no code with ours."""

import json
from collections import Counter

from tests.e2e.conftest import System
from tests.support.published_clients import completed, upload
from tests.support.shop import Shop
from tests.support.topic_reader import read_topic

HEADER = "S. No.,Product Name,Input Image URLs\n"


def test_independent_consumer_finds_each_image_once(system: System, shop: Shop, kafka_address: str) -> None:
    rows = "".join(f"{number},Shoe,{shop.add(f'consumed-{number}.jpg')}\n" for number in range(7))
    request_id = upload(system.url, HEADER + rows)
    assert completed(system.url, request_id)["succeeded"] == 7
    events = [
        (record, json.loads(record.value()))
        for record in read_topic(kafka_address, f"{system.name}.image-results")
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
    (completion,) = [
        json.loads(record.value())
        for record in read_topic(kafka_address, f"{system.name}.requests")
        if record.key() == request_id.encode() and b"RequestCompleted" in record.value()
    ]
    assert completion["data"]["total"] == completion["data"]["succeeded"] == 7
