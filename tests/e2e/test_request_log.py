"""The log of a request, read from the topics of a running system."""

from datetime import datetime

from tests.e2e.conftest import System
from tests.support.published_clients import call, completed, delivered, upload
from tests.support.shop import Shop

HEADER = "S. No.,Product Name,Input Image URLs\n"


def test_request_log_has_only_events_of_its_request(system: System, shop: Shop) -> None:
    url = shop.add("log.jpg")
    others = [upload(system.url, f"{HEADER}1,Hat,{url}\n") for _ in range(3)]
    request_id = upload(
        system.url,
        f'{HEADER}1,Shoe,"{url},{shop.url}/files/log-none.jpg"\n2,Cap,{url}\n',
        webhookUrl=f"{shop.url}/webhook/log",
    )
    status = completed(system.url, request_id)
    delivered(system.url, request_id)
    for other in others:
        completed(system.url, other)

    log = call(system.url, "GET", f"/api/requests/{request_id}/log").json
    assert log["whole"]
    entries = log["entries"]
    results = [entry["results"] for entry in entries if entry["event"] == "ImageResults"]
    told = list(dict.fromkeys(entry["event"] for entry in entries))
    assert told[:4] == ["RequestCreated", "ImageResults", "OutputCsvRequested", "RequestCompleted"]
    assert {"WebhookAttempted", "WebhookDelivered"} <= set(told)
    assert entries[0]["text"] == "A CSV of 2 rows with 3 images was accepted"
    assert datetime.fromisoformat(entries[0]["time"]) == datetime.fromisoformat(status["createdAt"])
    for field in ("succeeded", "failed", "inputBytes", "outputBytes"):
        assert sum(each[field] for each in results) == status[field]


def test_log_of_an_unknown_request_is_not_found(system: System) -> None:
    answer = call(system.url, "GET", "/api/requests/nobody-knows-it/log")
    assert (answer.status, answer.headers["content-type"]) == (404, "application/problem+json")
