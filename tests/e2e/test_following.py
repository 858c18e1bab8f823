"""Two clients written against the documentation alone: one polls with ETag and downloads, one follows by SSE."""

import json
import time
from collections.abc import AsyncIterator

import aiohttp

from tests.e2e.conftest import System
from tests.support.published_clients import call, completed, curl_form, upload
from tests.support.shop import Shop

HEADER = "S. No.,Product Name,Input Image URLs\n"


def many(shop: Shop, name: str, count: int) -> str:
    url = shop.add(name)
    return HEADER + "".join(f"{number},Shoe {number},{url}\n" for number in range(count))


def test_batch_client_uploads_polls_with_etag_and_downloads(system: System, shop: Shop) -> None:
    body, headers = curl_form(("file", "batch.csv", many(shop, "batch.jpg", 120).encode()))
    accepted = call(system.url, "POST", "/api/upload", body, headers)
    assert accepted.status == 202
    place, etag, progress, unchanged = accepted.headers["location"], "", [], 0
    deadline = time.monotonic() + 180
    while True:
        assert time.monotonic() < deadline
        answer = call(system.url, "GET", place, headers={"If-None-Match": etag} if etag else {})
        if answer.status == 304:
            unchanged += 1
            assert (answer.body, answer.headers["etag"]) == (b"", etag)
        else:
            assert answer.status == 200
            assert answer.headers["etag"] != etag
            etag = answer.headers["etag"]
            progress.append(answer.json["progress"])
            if answer.json["status"] == "completed":
                break
            assert int(answer.headers["retry-after"]) > 0
        time.sleep(0.02)
    assert progress == sorted(progress)
    assert unchanged > 0
    output = call(system.url, "GET", answer.json["outputCsvUrl"].removeprefix(system.url))
    assert (output.status, output.body.count(b"\r\n")) == (200, 121)


class Event:
    """One event of a stream, as https://html.spec.whatwg.org/multipage/server-sent-events.html reads it."""

    def __init__(self, block: str) -> None:
        fields = [line.partition(":")[::2] for line in block.splitlines()]
        self.comments = [value for name, value in fields if name == ""]
        values = {name: value.removeprefix(" ") for name, value in fields}
        self.id, self.data = values.get("id", ""), values.get("data", "")
        self.retry = values.get("retry")


async def stream_of(response: aiohttp.ClientResponse) -> AsyncIterator[Event]:
    text = ""
    async for chunk in response.content.iter_any():
        text += chunk.decode()
        while "\n\n" in text:
            block, _, text = text.partition("\n\n")
            yield Event(block)
    assert text == "", "the stream ends with a whole event"


async def test_client_follows_request_and_resumes_its_stream(system: System, shop: Shop) -> None:
    request_id = upload(system.url, many(shop, "followed.jpg", 400))
    url = f"{system.url}/api/requests/{request_id}/events"

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=180)) as session:
        seen: list[dict[str, object]] = []
        last_id = ""
        async with session.get(url) as response:
            assert response.status == 200
            assert response.content_type == "text/event-stream"
            assert response.headers["Cache-Control"] == "no-store"
            async for event in stream_of(response):
                if not event.data:
                    assert event.retry
                    continue
                seen.append(json.loads(event.data))
                last_id = event.id
                if len(seen) == 2:
                    break  # the connection is lost
        async with session.get(url, headers={"Last-Event-ID": last_id}) as response:
            async for event in stream_of(response):
                if event.data:
                    assert event.id != last_id, "what the client knows is not told again"
                    seen.append(json.loads(event.data))
                    last_id = event.id
        assert [status["status"] for status in seen] == ["processing"] * (len(seen) - 1) + ["completed"]
        progress = [int(str(status["progress"])) for status in seen]
        assert progress == sorted(progress)
        assert len(seen) > 3
        times = [str(status["updatedAt"]) for status in seen]
        assert times == sorted(times)
        async with session.get(url, headers={"Last-Event-ID": last_id}) as response:
            assert response.status == 204, "nothing more will come: a browser stops asking"
        async with session.get(url) as response:
            (last,) = [event async for event in stream_of(response) if event.data]
            assert json.loads(last.data) == seen[-1]
    assert completed(system.url, request_id)["progress"] == 100
