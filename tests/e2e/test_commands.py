"""Cancel and retry through the whole system: what is stopped stays stopped, what is run again completes again."""

import csv
import io
import json
import time
from typing import Any

import psutil

from infra.errors import EXIT_IMAGES_FAILED
from streams.events.requests import RequestCancelled
from tests.e2e.conftest import System
from tests.support.published_clients import Answer, call, completed, delivered, upload
from tests.support.shop import Shop, photo
from tests.support.topic_reader import read_topic, wait_until_read
from tests.support.waiting import wait_until

HEADER = "S. No.,Product Name,Input Image URLs\n"


def command(system: System, request_id: str, word: str) -> Answer:
    return call(system.url, "POST", f"/api/requests/{request_id}/{word}")


def status_of(system: System, request_id: str) -> dict[str, Any]:
    status: dict[str, Any] = call(system.url, "GET", f"/api/status/{request_id}").json
    return status


def rows_of(system: System, request_id: str) -> list[list[str]]:
    body = call(system.url, "GET", f"/api/download/{request_id}").body
    return list(csv.reader(io.StringIO(body.decode("utf-8-sig"))))


def settled(system: System, kafka_address: str, request_id: str) -> dict[str, Any]:
    """The status with every result: compress has taken or skipped each image, and progress has counted it."""
    wait_until_read(kafka_address, f"{system.name}-compress", f"{system.name}.image-requests")
    results = {
        json.loads(record.value())["id"]
        for record in read_topic(kafka_address, f"{system.name}.image-results")
        if record.key() == request_id.encode()
    }

    def is_counted() -> bool:
        status = status_of(system, request_id)
        return int(status["succeeded"] + status["failed"]) == len(results)

    wait_until(is_counted, f"{len(results)} images in the status")
    return status_of(system, request_id)


def verified(system: System, request_id: str) -> None:
    for what in ("progress", "history", "output"):
        answer = system.run("replay", what, "--verify", "--request", request_id)
        assert answer.returncode == 0, answer.stdout + answer.stderr


def rebuilt(system: System, request_id: str) -> None:
    for what in ("progress", "history", "output"):
        answer = system.run("replay", what, "--request", request_id)
        assert answer.returncode == 0, answer.stdout + answer.stderr


def test_retry_runs_failed_images_and_sends_webhook(system: System, shop: Shop) -> None:
    good = shop.add("retry-good.jpg")
    late, never = f"{shop.url}/files/retry-late.jpg", f"{shop.url}/files/retry-never.jpg"
    request_id = upload(
        system.url, f'{HEADER}1,Shoe,"{good},{late}"\n2,Hat,{never}\n', webhookUrl=f"{shop.url}/webhook/retried"
    )
    first = completed(system.url, request_id)
    assert (first["succeeded"], first["failed"]) == (1, 2)
    delivered(system.url, request_id)
    shop.files["retry-late.jpg"] = photo(seed=77)

    answer = command(system, request_id, "retry")
    assert (answer.status, answer.json["requestId"]) == (202, request_id)
    assert answer.headers["location"] == f"/api/status/{request_id}"
    # At once: who polls must not take the completion before for this one.
    assert status_of(system, request_id)["status"] in ("processing", "completed")
    deadline = time.monotonic() + 120
    while (second := status_of(system, request_id))["completedAt"] in (None, first["completedAt"]):
        assert second["status"] == "processing", "the completion of the run before is not shown again"
        assert time.monotonic() < deadline, second
        time.sleep(0.05)
    assert (second["status"], second["succeeded"], second["failed"]) == ("completed", 2, 1)
    assert second["outputCsvUrl"] == first["outputCsvUrl"]
    header, shoe, hat = rows_of(system, request_id)
    assert header[-1] == "Errors"
    assert all(url.startswith("http") for url in shoe[3].split(","))
    assert (shoe[4], hat[3:]) == ("", ["", "image 1: fetch_http_404"])
    assert shop.fetched.count("retry-good.jpg") == 1, "what had succeeded is not fetched again"
    deliveries = shop.wait_for_deliveries(request_id, 2)
    assert len({delivery.headers["webhook-id"] for delivery in deliveries}) == 2
    delivered(system.url, request_id)
    assert len(shop.received(request_id)) == 2

    status = status_of(system, request_id)
    output = call(system.url, "GET", f"/api/download/{request_id}").body
    verified(system, request_id)
    rebuilt(system, request_id)
    assert status_of(system, request_id) == status
    assert call(system.url, "GET", f"/api/download/{request_id}").body == output


def test_retry_of_one_reason_leaves_the_other_failures(system: System, shop: Shop) -> None:
    """Counted by reason in the API and on the command line; exact under a rebuild."""
    late, page = f"{shop.url}/files/reason-late.jpg", shop.add("reason-page.jpg", b"<!doctype html><p>Share")
    request_id = upload(system.url, f'{HEADER}1,Shoe,"{late},{page}"\n')
    assert completed(system.url, request_id)["failed"] == 2
    told = system.run("status", request_id).stderr
    assert "1 x 404 (fetch_http_404): There is no image at the URL" in told
    assert "1 x not an image: a web page (web_page)" in told
    unknown = command(system, request_id, "retry?reason=fetch_http_4o4")
    assert (unknown.status, "reason" in unknown.json["detail"]) == (400, True)
    none = command(system, request_id, "retry?reason=fetch_timeout")
    assert (none.status, none.json["type"]) == (409, "urn:shrinkstream:problem:nothing-failed")

    shop.files["reason-late.jpg"] = photo(seed=78)
    retried = system.run("retry", request_id, "--reason", "fetch_http_404")
    assert retried.returncode == EXIT_IMAGES_FAILED, retried.stderr
    assert shop.fetched.count("reason-page.jpg") == 1
    _, shoe = rows_of(system, request_id)
    assert shoe[4] == "image 2: web_page"
    failures = call(system.url, "GET", f"/api/requests/{request_id}/failures").json
    assert [(each["reason"], each["images"]) for each in failures["reasons"]] == [("web_page", 1)]
    status = status_of(system, request_id)
    verified(system, request_id)
    rebuilt(system, request_id)
    assert status_of(system, request_id) == status


def test_deleted_request_has_no_files_and_keeps_its_history(system: System, shop: Shop) -> None:
    """Refused while it is processing; the command line asks; no replay restores the files."""
    shop.slow_seconds = 60
    busy = upload(system.url, f"{HEADER}1,Shoe,{shop.url}/slow\n")
    refused = call(system.url, "DELETE", f"/api/requests/{busy}")
    assert (refused.status, refused.json["type"]) == (409, "urn:shrinkstream:problem:still-processing")
    command(system, busy, "cancel")
    assert call(system.url, "DELETE", f"/api/requests/{busy}").json["status"] == "expired"

    request_id = upload(system.url, f"{HEADER}1,Shoe,{shop.add('deleted.jpg')}\n")
    completed(system.url, request_id)
    (image,) = call(system.url, "GET", f"/api/requests/{request_id}/images").json["items"]
    path = image["outputUrl"].removeprefix(system.url)
    assert system.run("delete", request_id, typed="n\n").returncode == 1
    assert call(system.url, "GET", path).status == 200
    assert system.run("delete", request_id, "--yes").returncode == 0
    # The history, which has a request that left the progress table by now, may take a moment.
    wait_until(lambda: status_of(system, request_id)["status"] == "expired", "the request is expired")
    deadline = time.monotonic() + 60
    while call(system.url, "GET", path).status != 410:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for path in (f"/api/download/{request_id}", f"/api/requests/{request_id}/archive.zip"):
        assert call(system.url, "GET", path).status == 410
    again = call(system.url, "DELETE", f"/api/requests/{request_id}")
    assert (again.status, again.json["status"], again.json["succeeded"]) == (200, "expired", 1)
    rebuilt(system, request_id)
    assert call(system.url, "GET", f"/api/download/{request_id}").status == 410
    assert call(system.url, "DELETE", "/api/requests/unknown").status == 404


def test_forgotten_request_leaves_lists_and_product_histories(system: System, shop: Shop) -> None:
    """At once or once it is expired; a rebuild doesn't bring it back, and the verification is green."""
    product = "Forgettable%20shoe"
    requests = [upload(system.url, f"{HEADER}1,Forgettable shoe,{shop.add(f'forgotten-{n}.jpg')}\n") for n in range(2)]
    for request_id in requests:
        completed(system.url, request_id)
    history = call(system.url, "GET", f"/api/products/{product}/history").json["items"]
    assert {item["requestId"] for item in history} == set(requests)
    refused = call(system.url, "DELETE", f"/api/requests/{requests[0]}?forget=maybe")
    assert (refused.status, "forget" in refused.json["detail"]) == (422, True)
    assert call(system.url, "DELETE", "/api/requests/unknown?forget=true").status == 404

    assert call(system.url, "DELETE", f"/api/requests/{requests[0]}").json.get("forgotten") is None
    for request_id in requests:
        answer = call(system.url, "DELETE", f"/api/requests/{request_id}?forget=true")
        assert (answer.status, answer.json["status"], answer.json["forgotten"]) == (200, "expired", True)
    assert "forgotten" in system.run("delete", requests[1], "--forget", "--yes").stderr
    deadline = time.monotonic() + 120
    while call(system.url, "GET", f"/api/products/{product}/history").json["items"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for request_id in requests:
        verified(system, request_id)
        rebuilt(system, request_id)
        verified(system, request_id)
        status = status_of(system, request_id)
        assert (status["status"], status["forgotten"], status["succeeded"]) == ("expired", True, 1)
        assert call(system.url, "GET", f"/api/requests/{request_id}/images").json == {"items": [], "nextCursor": None}
        assert call(system.url, "GET", f"/api/requests/{request_id}/failures").json["reasons"] == []
    assert call(system.url, "GET", f"/api/products/{product}/history").json["items"] == []


def test_impossible_cancel_or_retry_is_a_conflict(system: System, shop: Shop) -> None:
    request_id = upload(system.url, f"{HEADER}1,Shoe,{shop.add('conflict.jpg')}\n")
    completed(system.url, request_id)
    for word, code in (("cancel", "already-completed"), ("retry", "nothing-failed")):
        answer = command(system, request_id, word)
        assert (answer.status, answer.headers["content-type"]) == (409, "application/problem+json")
        assert answer.json["type"].endswith(code)
        assert command(system, "nobody", word).status == 404
        assert call(system.url, "GET", f"/api/requests/{request_id}/{word}").status == 405


def test_cancelled_request_is_not_fetched_until_retried(system: System, shop: Shop, kafka_address: str) -> None:
    """The first images take their time, so that those behind them are still to be fetched when the cancel comes."""
    quick = shop.add("cancelled.jpg")
    slow = "".join(f"{number},Slow,{shop.url}/slow?{number}\n" for number in range(150))
    rows = "".join(f"{number},Shoe,{quick}\n" for number in range(300))
    shop.slow_seconds = 1
    request_id = upload(system.url, HEADER + slow + rows, webhookUrl=f"{shop.url}/webhook/cancelled")
    assert command(system, request_id, "retry").status == 409
    answer = command(system, request_id, "cancel")
    assert (answer.status, answer.json["status"]) == (200, "cancelled")
    assert status_of(system, request_id)["status"] == "cancelled"
    for path in (f"/api/download/{request_id}", f"/api/requests/{request_id}/archive.zip"):
        assert call(system.url, "GET", path).status == 409
    status = settled(system, kafka_address, request_id)
    fetched = shop.fetched.count("cancelled.jpg")
    assert (status["status"], status["completedAt"], status["webhook"]) == ("cancelled", None, None)
    assert status["succeeded"] + status["failed"] < status["total"]
    again = command(system, request_id, "cancel")
    assert (again.status, again.json) == (200, status)
    verified(system, request_id)
    rebuilt(system, request_id)
    assert status_of(system, request_id) == status
    assert shop.fetched.count("cancelled.jpg") == fetched < 300

    shop.slow_seconds = 0
    assert command(system, request_id, "retry").status == 202
    status = completed(system.url, request_id)
    assert (status["total"], status["succeeded"], status["failed"]) == (450, 300, 150)
    shop.wait_for_deliveries(request_id, 1)


def kill_progress(system: System) -> None:
    for child in psutil.Process(system.process.pid).children(recursive=True):
        if child.is_running() and "infra.cli worker progress" in " ".join(child.cmdline()):
            child.kill()


def test_killed_progress_worker_leaves_retry_whole(system: System, shop: Shop) -> None:
    # Addresses that are refused without asking anybody.
    rows = "".join(f"{number},Shoe,http://10.0.0.1/{number}.jpg\n" for number in range(1500))
    request_id = upload(system.url, HEADER + rows, webhookUrl=f"{shop.url}/webhook/killed")
    assert completed(system.url, request_id)["failed"] == 1500
    delivered(system.url, request_id)
    first = call(system.url, "GET", f"/api/download/{request_id}").body
    assert command(system, request_id, "retry").status == 202
    kill_progress(system)
    deadline = time.monotonic() + 120
    while status_of(system, request_id)["failed"] == 0:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    kill_progress(system)
    status = completed(system.url, request_id)
    assert (status["total"], status["failed"]) == (1500, 1500)
    assert call(system.url, "GET", f"/api/download/{request_id}").body == first
    assert len({one.headers["webhook-id"] for one in shop.wait_for_deliveries(request_id, 2)}) == 2
    images = call(system.url, "GET", f"/api/requests/{request_id}/images?limit=1000").json["items"]
    assert {image["attempt"] for image in images} == {1}


def test_command_line_lists_cancels_and_retries(system: System, shop: Shop, kafka_address: str) -> None:
    rows = "".join(f"{number},Slow,{shop.url}/slow?{number}\n" for number in range(100))
    shop.slow_seconds = 1
    request_id = upload(system.url, HEADER + rows)
    cancelled = system.run("cancel", request_id)
    assert (cancelled.returncode, cancelled.stderr[:10]) == (0, "cancelled:"), cancelled.stderr
    listed = system.run("list", "--limit", "5").stdout.splitlines()
    assert listed[0].startswith(request_id)
    assert " cancelled " in listed[0]
    shop.slow_seconds = 0
    retried = system.run("retry", request_id)
    assert retried.returncode == 4, retried.stderr
    assert "0 of 100 images compressed, 100 failed" in retried.stderr
    refused = system.run("replay", "progress", "--request", "../etc")
    assert refused.returncode != 0
    assert "letters, digits" in refused.stderr
    assert "Traceback" not in refused.stderr
    types = {
        json.loads(record.value())["type"]
        for record in read_topic(kafka_address, f"{system.name}.requests")
        if record.key() == request_id.encode()
    }
    assert {RequestCancelled.event_type(), "shrinkstream.RequestRetried.v1"} <= types
