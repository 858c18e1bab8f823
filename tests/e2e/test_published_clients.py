"""Requests as the documents of five published Node systems show them, sent as curl sends them.

They upload under three addresses, call the file and the webhook by several names, and read the id from either
spelling; none of them would have to be changed.
"""

import pytest

from tests.e2e.conftest import System
from tests.support.published_clients import call, completed, curl_form
from tests.support.shop import Shop


@pytest.mark.parametrize(
    ("upload_path", "file_part", "webhook_field", "header", "status_path", "id_field"),
    [
        ("/api/upload", "file", "webhookUrl", "S. No.,Product Name,Input Image Urls", "/api/status/", "requestId"),
        (
            "/api/images/upload",
            "file",
            None,
            "Serial Number,Product Name,Input Image Urls",
            "/api/status/",
            "requestId",
        ),
        ("/upload", "file", "webhookUrl", "S. No., Product Name, Input Image Urls", "/status/", "requestId"),
        ("/upload", "file", "webhook_url", "S. No.,Product Name,Input Image URLs", "/status/", "request_id"),
        ("/api/upload", "csvFile", None, "serialNumber,productName,inputImageUrls", "/api/status/", "requestId"),
    ],
)
def test_published_client_works_unchanged(
    system: System,
    shop: Shop,
    upload_path: str,
    file_part: str,
    webhook_field: str | None,
    header: str,
    status_path: str,
    id_field: str,
) -> None:
    first, second = shop.add("published-1.jpg"), shop.add("published-2.jpg")
    csv = f'{header}\n1,SKU1,"{first}, {second}"\n'
    parts: list[tuple[str, str] | tuple[str, str, bytes]] = [(file_part, "input.csv", csv.encode())]
    if webhook_field:
        parts.append((webhook_field, f"{shop.url}/webhook/published"))
    body, headers = curl_form(*parts)
    answer = call(system.url, "POST", upload_path, body, headers)
    assert answer.status == 202
    assert answer.headers["content-type"].startswith("application/json")
    assert set(answer.json) == {"message", "requestId", "request_id"}
    request_id = answer.json[id_field]
    assert answer.headers["location"] == f"/api/status/{request_id}"

    status = call(system.url, "GET", status_path + request_id)
    assert status.status == 200
    assert status.json[id_field] == request_id
    assert status.json["status"] in ("processing", "completed")
    completed(system.url, request_id)
    assert call(system.url, "GET", f"/api/download/{request_id}").body.count(b"/images/") == 2
    if webhook_field:
        assert len(shop.wait_for_deliveries(request_id, 1)) == 1


def test_csv_can_be_sent_as_the_body_itself(system: System, shop: Shop) -> None:
    csv = f"S. No.,Product Name,Input Image URLs\n1,SKU1,{shop.add('raw.jpg')}\n"
    answer = call(
        system.url,
        "POST",
        f"/api/upload?webhookUrl={shop.url}/webhook/raw",
        csv.encode(),
        {"Content-Type": "text/csv"},
    )
    assert answer.status == 202
    completed(system.url, answer.json["requestId"])
    assert len(shop.wait_for_deliveries(answer.json["requestId"], 1)) == 1


def test_status_has_every_documented_field(system: System, shop: Shop) -> None:
    csv = f"S. No.,Product Name,Input Image URLs\n1,SKU1,{shop.add('fields.jpg')}\n"
    body, headers = curl_form(("file", "input.csv", csv.encode()))
    request_id = call(system.url, "POST", "/api/upload", body, headers).json["requestId"]
    assert set(completed(system.url, request_id)) == {
        "requestId", "request_id", "status", "progress", "total", "succeeded", "failed", "inputBytes", "outputBytes",
        "createdAt", "updatedAt", "completedAt", "outputCsvUrl", "webhook",
    }  # fmt: skip


def test_matching_etag_gets_304_until_the_status_changes(system: System, shop: Shop) -> None:
    csv = f"S. No.,Product Name,Input Image URLs\n1,SKU1,{shop.add('etag.jpg')}\n"
    body, headers = curl_form(("file", "input.csv", csv.encode()))
    request_id = call(system.url, "POST", "/api/upload", body, headers).json["requestId"]
    first = call(system.url, "GET", f"/api/status/{request_id}")
    if first.json["status"] == "processing":
        assert first.headers["retry-after"] == "1"
    completed(system.url, request_id)
    final = call(system.url, "GET", f"/api/status/{request_id}")
    again = call(system.url, "GET", f"/api/status/{request_id}", headers={"If-None-Match": final.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    old = call(system.url, "GET", f"/api/status/{request_id}", headers={"If-None-Match": '"something-else"'})
    assert old.status == 200


def test_upload_repeated_with_its_key_makes_one_request(system: System, shop: Shop) -> None:
    csv = f"S. No.,Product Name,Input Image URLs\n1,SKU1,{shop.add('once.jpg')}\n".encode()
    headers = {"Content-Type": "text/csv", "Idempotency-Key": "an order of 21 November"}
    answers = [call(system.url, "POST", "/api/upload", csv, headers) for _ in range(3)]
    assert {answer.status for answer in answers} == {202}
    assert len({answer.json["requestId"] for answer in answers}) == 1
    other = call(system.url, "POST", "/api/upload", csv + b"\n2,SKU2,http://example.com/a.jpg\n", headers)
    assert (other.status, other.json["type"]) == (422, "urn:shrinkstream:problem:idempotency-key-reused")
    in_another_format = call(system.url, "POST", "/api/upload?format=webp", csv, headers)
    assert in_another_format.status == 422
