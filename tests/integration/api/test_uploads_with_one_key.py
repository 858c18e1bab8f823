"""Two uploads with one Idempotency-Key at the same time write the events of one."""

import asyncio
from uuid import uuid4

import pytest

from api.context import CONTEXT
from api.uploads import idempotency
from infra.settings import Settings
from tests.support.topic_reader import records_in
from tests.support.whole_api import serving

pytestmark = pytest.mark.slow

IMAGES = 5000
CSV = b"S. No.,Product Name,Input Image URLs\n" + b"".join(
    b"%d,Shoe,https://shop.example/%d.jpg\n" % (number, number) for number in range(IMAGES)
)


async def test_uploads_with_one_key_write_once(
    kafka_address: str, cassandra_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "WAIT_SECONDS", 60.0)  # on a busy machine
    async with serving(kafka_address, cassandra_settings) as api:
        key = str(uuid4())
        answers = await asyncio.gather(*(api.upload(CSV, key) for _ in range(3)))
        assert {status for status, _ in answers} == {202}, "the later ones wait for the first"
        (request_id,) = {body["requestId"] for _, body in answers}
        assert (await api.upload(CSV, key))[1]["requestId"] == request_id
        settings, topics = api.app[CONTEXT].settings, api.app[CONTEXT].events.topics
        assert len(await records_in(settings, topics.image_requests)) == IMAGES
        assert len(await records_in(settings, topics.requests)) == 1
