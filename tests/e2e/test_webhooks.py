"""Webhooks as a user of the API and of `shrinkstream listen` sees them."""

import signal
import subprocess
import sys
import time
from datetime import datetime
from typing import Any

from jsonschema import Draft202012Validator
from standardwebhooks.webhooks import Webhook

from tests.e2e.conftest import System
from tests.support.published_clients import call, completed, delivered, upload
from tests.support.shop import Shop

HEADER = "S. No.,Product Name,Input Image URLs\n"


def webhook(system: System, request_id: str) -> dict[str, Any]:
    answer = call(system.url, "GET", f"/api/requests/{request_id}/webhook")
    assert answer.status == 200, answer.body
    shown: dict[str, Any] = answer.json
    return shown


def wait_for_attempts(system: System, request_id: str, count: int) -> dict[str, Any]:
    deadline = time.monotonic() + 120
    while True:
        shown = webhook(system, request_id)
        if shown["messages"] and len(shown["messages"][0]["attempts"]) >= count:
            return shown
        assert time.monotonic() < deadline, shown
        time.sleep(0.1)


def test_attempts_are_listed_and_redelivery_keeps_its_id(system: System, shop: Shop) -> None:
    url = f"{shop.url}/webhook/listed"
    request_id = upload(system.url, f"{HEADER}1,Shoe,{shop.add('listed.jpg')}\n", webhookUrl=url)
    delivered(system.url, request_id)
    shown = wait_for_attempts(system, request_id, 1)
    (message,) = shown["messages"]
    (attempt,) = message.pop("attempts")
    assert shown["webhook"] == "delivered"
    assert message == {
        "webhookId": shop.received(request_id)[0].headers["webhook-id"],
        "type": "request.completed",
        "run": 0,
        "url": url,
        "state": "delivered",
        "nextAttemptAt": None,
    }
    assert datetime.fromisoformat(attempt.pop("time")).utcoffset() is not None
    assert 0 <= attempt.pop("milliseconds") < 15_000
    assert attempt == {"attempt": 1, "status": 204, "reason": None}

    answer = call(system.url, "POST", f"/api/requests/{request_id}/webhook/redeliver")
    assert (answer.status, answer.json["webhookId"]) == (202, message["webhookId"])
    assert answer.headers["location"] == f"/api/requests/{request_id}/webhook"
    again = shop.wait_for_deliveries(request_id, 2)
    assert {one.headers["webhook-id"] for one in again} == {message["webhookId"]}
    for one in again:
        Webhook(shop.secret).verify(one.body, one.headers)
    shown = wait_for_attempts(system, request_id, 2)
    assert [one["attempt"] for one in shown["messages"][0]["attempts"]] == [1, 2]
    assert shown["webhook"] == "delivered"


def test_manual_redelivery_reaches_a_returned_receiver(system: System, shop: Shop) -> None:
    shop.webhook_answers["gone"] = [410]
    request_id = upload(system.url, f"{HEADER}1,Shoe,{shop.add('gone.jpg')}\n", webhookUrl=f"{shop.url}/webhook/gone")
    completed(system.url, request_id)
    shown = wait_for_attempts(system, request_id, 1)
    assert (shown["messages"][0]["state"], shown["messages"][0]["attempts"][0]["reason"]) == ("failed", "http_410")
    assert call(system.url, "POST", f"/api/requests/{request_id}/webhook/redeliver").status == 202
    delivered(system.url, request_id)
    assert len(shop.received(request_id)) == 2


def test_redelivery_without_receiver_or_request_is_rejected(system: System, shop: Shop) -> None:
    request_id = upload(system.url, f"{HEADER}1,Shoe,{shop.add('nobody.jpg')}\n")
    completed(system.url, request_id)
    assert webhook(system, request_id) == {"requestId": request_id, "webhook": None, "messages": []}
    refused = call(system.url, "POST", f"/api/requests/{request_id}/webhook/redeliver")
    assert (refused.status, refused.json["type"]) == (409, "urn:shrinkstream:problem:no-webhook")
    for method, path in (("GET", "webhook"), ("POST", "webhook/redeliver")):
        unknown = call(system.url, method, f"/api/requests/nobody-knows/{path}")
        assert (unknown.status, unknown.json["type"]) == (404, "urn:shrinkstream:problem:unknown-request")


def test_image_messages_carry_at_most_a_hundred_images(system: System, shop: Shop) -> None:
    url = shop.add("told.jpg")
    rows = "".join(f"{number},Shoe {number},{url}\n" for number in range(230))
    rows += f"x,Hat,{shop.url}/files/no-such.jpg\n"
    hook = f"{shop.url}/webhook/images"
    request_id = upload(
        system.url, HEADER + rows, webhookUrl=hook, webhookEvents="image.processed, image.failed,request.completed"
    )
    delivered(system.url, request_id)
    messages = shop.wait_for_deliveries(request_id, 5)
    verified = [Webhook(shop.secret).verify(one.body, one.headers) for one in messages]
    images = {
        kind: [[image["index"] for image in one["data"]["images"]] for one in verified if one["type"] == kind]
        for kind in ("image.processed", "image.failed")
    }
    assert sorted(images["image.processed"]) == [[*range(100)], [*range(100, 200)], [*range(200, 230)]]
    assert images["image.failed"] == [[230]]
    (failure,) = next(one["data"]["images"] for one in verified if one["type"] == "image.failed")
    assert (failure["productName"], failure["reason"]) == ("Hat", "fetch_http_404")
    assert len({one.headers["webhook-id"] for one in messages}) == 5
    document = call(system.url, "GET", "/openapi.json").json
    for one in verified:
        operation = document["webhooks"][one["type"]]["post"]
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        Draft202012Validator({**schema, "components": document["components"]}).validate(one)
    assert webhook(system, request_id)["messages"][0]["type"] == "request.completed"


def test_unknown_webhook_events_are_refused(system: System, shop: Shop) -> None:
    csv = f"{HEADER}1,Shoe,{shop.add('x.jpg')}\n".encode()
    answer = call(system.url, "POST", "/api/upload?webhookEvents=image.eaten", csv, {"Content-Type": "text/csv"})
    assert (answer.status, answer.json["type"]) == (422, "urn:shrinkstream:problem:bad-webhook-events")


def test_listen_prints_genuine_messages_and_rejects_others(system: System, shop: Shop) -> None:
    shop_port = shop.address.rpartition(":")[2]
    listening = subprocess.Popen(
        [sys.executable, "-m", "infra.cli", "listen", "--port", "0", "--secret", shop.secret],
        stdout=subprocess.PIPE,
        text=True,
        env={name: value for name, value in system.environment.items() if not name.startswith("SHRINKSTREAM_")},
    )
    try:
        assert listening.stdout is not None
        address = listening.stdout.readline().split()[2]
        request_id = upload(
            system.url, f"{HEADER}1,Shoe,{shop.add('heard.jpg')}\n", webhookUrl=f"{shop.url}/webhook/heard"
        )
        (genuine,) = shop.wait_for_deliveries(request_id, 1)
        sent = {name: value for name, value in genuine.headers.items() if name.startswith(("webhook-", "content-type"))}
        assert call(address, "POST", "/hook", genuine.body, sent).status == 204
        assert listening.stdout.readline() == f"verified '{sent['webhook-id']}'\n"
        tampered = genuine.body.replace(b"completed", b"cancelled")
        assert call(address, "POST", "/hook", tampered, sent).status == 401
        listening.send_signal(signal.SIGINT)
        rest = listening.stdout.read()
        assert '"type": "request.completed"' in rest
        assert "refused" in rest
        assert "no signature matches" in rest
        assert listening.wait(60) == 0
    finally:
        listening.kill()
    taken = system.run("listen", "--port", shop_port)
    assert taken.returncode == 1
    assert len(taken.stderr.splitlines()) == 1
