"""Requests, images and products as lists: complete, in order, in parts, and each owner's own."""

from typing import Any
from urllib.parse import quote

import pytest

from tests.e2e.conftest import System
from tests.support.published_clients import Answer, call, completed, curl_form, upload
from tests.support.shop import Shop

HEADER = "S. No.,Product Name,Input Image URLs\n"


def pages(system: System, path: str, limit: int) -> list[list[dict[str, Any]]]:
    """Every page of a list, by following its cursors."""
    found, cursor = [], ""
    mark = "&" if "?" in path else "?"
    while True:
        answer = call(system.url, "GET", f"{path}{mark}limit={limit}&cursor={cursor}")
        assert answer.status == 200, answer.body
        found.append(answer.json["items"])
        assert len(found[-1]) <= limit
        cursor = answer.json["nextCursor"] or ""
        if not cursor:
            return found


def listed(system: System, path: str, limit: int) -> list[dict[str, Any]]:
    return [item for page in pages(system, path, limit) for item in page]


def test_accepted_request_is_first_in_the_list(system: System, shop: Shop) -> None:
    url = shop.add("listed.jpg")
    ids = []
    for _ in range(5):
        ids.append(upload(system.url, f"{HEADER}1,Shoe,{url}\n"))
        assert call(system.url, "GET", "/api/requests?limit=1").json["items"][0]["requestId"] == ids[-1]
    everything = listed(system, "/api/requests", limit=2)
    assert [item["requestId"] for item in everything[:5]] == ids[::-1]
    assert len({item["requestId"] for item in everything}) == len(everything), "each once"
    created_at = [item["createdAt"] for item in everything]
    assert created_at == sorted(created_at, reverse=True)
    for request_id in ids:
        completed(system.url, request_id)
    done = listed(system, "/api/requests?status=completed", limit=200)
    assert {item["status"] for item in done} == {"completed"}
    assert [item["requestId"] for item in done[:5]] == ids[::-1]
    assert done[0] == call(system.url, "GET", f"/api/status/{ids[-1]}").json


def test_image_list_equals_output_csv_by_page_and_status(system: System, shop: Shop) -> None:
    good, missing = shop.add("image-list.jpg"), f"{shop.url}/files/image-list-none.jpg"
    rows = "".join(f"{number},Shoe {number},{missing if number % 500 == 3 else good}\n" for number in range(1100))
    request_id = upload(system.url, HEADER + rows)
    completed(system.url, request_id)
    path = f"/api/requests/{request_id}/images"
    images = listed(system, path, limit=300)
    assert [image["index"] for image in images] == list(range(1100))
    failed = [image for image in images if image["status"] == "failed"]
    assert [image["index"] for image in failed] == [3, 503, 1003]
    assert {image["reason"] for image in failed} == {"fetch_http_404"}
    assert listed(system, f"{path}?status=failed", limit=2) == failed
    assert len(listed(system, f"{path}?status=succeeded", limit=1000)) == 1097
    assert listed(system, f"{path}?status=pending", limit=1000) == []
    image = images[7]
    assert image["inputBytes"] == len(shop.files["image-list.jpg"]) > image["outputBytes"]
    assert (image["row"], image["serial"], image["productName"], image["inputUrl"]) == (7, "7", "Shoe 7", good)
    assert (image["format"], image["width"], image["height"], image["attempt"]) == ("jpeg", 320, 240, 0)
    assert len(image["sha256"]) == 64
    assert image["milliseconds"] >= 0
    assert image["outputUrl"].endswith(f"/{request_id}/7.jpg")
    assert (image["reason"], image["detail"]) == (None, None)


def test_images_without_result_are_pending_until_cancellation(system: System, shop: Shop) -> None:
    request_id = upload(system.url, HEADER + "".join(f"{n},Slow,{shop.url}/slow?{n}\n" for n in range(40)))
    path = f"/api/requests/{request_id}/images"
    assert [(image["index"], image["inputUrl"]) for image in listed(system, f"{path}?status=pending", 15)] == [
        (number, None) for number in range(40)
    ]
    call(system.url, "POST", f"/api/requests/{request_id}/cancel")
    assert len(listed(system, f"{path}?status=cancelled", limit=15)) == 40


@pytest.mark.parametrize("name", ["Boot", "Boot/left 50% \N{SNOWMAN} .."])
def test_product_history_is_newest_first(system: System, shop: Shop, name: str) -> None:
    url, missing = shop.add("boot.jpg"), f"{shop.url}/files/no-boot.jpg"
    ids = []
    for _ in range(2):
        ids.append(upload(system.url, f'{HEADER}1,{name},"{url},{missing}"\n'))
        completed(system.url, ids[-1])
    history = listed(system, f"/api/products/{quote(name, safe='')}/history", limit=3)
    assert [(image["requestId"], image["index"]) for image in history] == [
        (request_id, index) for request_id in reversed(ids) for index in (1, 0)
    ]
    assert [(image["status"], image["reason"]) for image in history[:2]] == [
        ("failed", "fetch_http_404"),
        ("succeeded", None),
    ]
    assert history[1]["outputBytes"] < history[1]["inputBytes"]


@pytest.mark.parametrize(
    "path",
    [
        "/api/requests?limit=0",
        "/api/requests?limit=201",
        "/api/requests?limit=\N{DIGIT ONE}_0",
        "/api/requests?status=done",
        "/api/requests?cursor=x",
        "/api/requests?cursor=W10",
        "/api/requests?cursor=" + "A" * 3000,
        "/api/products/Boot/history?cursor=WzEsMiwzXQ",
        "/api/products/Boot/history?limit=-1",
        # The year 1, half a day before it begins in UTC
        "/api/requests?cursor=WyIwMDAxLTAxLTAxVDAwOjAwOjAwKzE0OjAwIiwgImEiXQ",
        f"/api/requests/{'x' * 64}/images?cursor=LTE",
    ],
)
def test_invalid_query_is_a_problem(system: System, path: str) -> None:
    answer = call(system.url, "GET", path)
    assert (answer.status, answer.headers["content-type"]) == (400, "application/problem+json")
    assert answer.json["type"].endswith("bad-query")


def test_unknown_product_and_request_have_empty_lists(system: System) -> None:
    assert call(system.url, "GET", "/api/products/nothing/history").json == {"items": [], "nextCursor": None}
    for path in ("images", "events"):
        answer = call(system.url, "GET", f"/api/requests/nobody/{path}")
        assert (answer.status, answer.headers["content-type"]) == (404, "application/problem+json")


def test_owner_cannot_read_or_change_requests_of_others(guarded_url: str, shop: Shop) -> None:
    def ask(key: str, method: str, path: str) -> Answer:
        return call(guarded_url, method, path, headers={"X-API-Key": key})

    body, headers = curl_form(("file", "a.csv", f"{HEADER}1,Sandal,{shop.add('sandal.jpg')}\n".encode()))
    answer = call(guarded_url, "POST", "/api/upload", body, {**headers, "Authorization": "Bearer key-a"})
    request_id = answer.json["requestId"]
    assert [item["requestId"] for item in ask("key-a", "GET", "/api/requests").json["items"]] == [request_id]
    assert ask("key-b", "GET", "/api/requests").json["items"] == []
    of_one = [("GET", f"/api/requests/{request_id}/{word}") for word in ("images", "events")]
    of_one += [("POST", f"/api/requests/{request_id}/{word}") for word in ("cancel", "retry")]
    for method, path in of_one:
        assert ask("key-b", method, path).status == 404
        assert ask("no-key", method, path).status == 401
    stream = ask("key-a", "GET", f"/api/requests/{request_id}/events")  # ends with the request
    assert (stream.status, b'"status":"completed"' in stream.body) == (200, True)
    assert len(ask("key-a", "GET", "/api/products/Sandal/history").json["items"]) == 1
    assert ask("key-b", "GET", "/api/products/Sandal/history").json["items"] == []
