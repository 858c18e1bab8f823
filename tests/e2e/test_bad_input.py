"""What can't be used is refused whole, with a reason, and leaves no event."""

import orjson
import pytest

from tests.e2e.conftest import System
from tests.support.published_clients import Answer, call, curl_form
from tests.support.shop import Shop
from tests.support.topic_reader import read_topic

HEADER = "S. No.,Product Name,Input Image URLs\n"


def post(system: System, csv: bytes, **fields: str) -> Answer:
    body, headers = curl_form(("file", "input.csv", csv), *fields.items())
    return call(system.url, "POST", "/api/upload", body, headers)


def requests_written(system: System, kafka_address: str) -> set[str]:
    """The ids of the requests of which an event is on the topics that an upload writes to."""
    topics = (f"{system.name}.requests", f"{system.name}.image-requests")
    records = (record for topic in topics for record in read_topic(kafka_address, topic))
    return {orjson.loads(record.value())["subject"].partition("/")[0] for record in records}


@pytest.mark.parametrize(
    "csv",
    [
        b"",
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        b"PK\x03\x04 a spreadsheet",
        b'{"products": []}',
        HEADER.encode(),
        b"Name,Picture\nShoe,http://example.com/a.jpg\n",
        f'{HEADER}1,"Shoe,http://example.com/a.jpg\n'.encode(),
    ],
    ids=["empty", "an image", "a spreadsheet", "json", "header only", "wrong header", "unterminated quote"],
)
def test_unusable_csv_is_rejected(system: System, kafka_address: str, csv: bytes) -> None:
    before = requests_written(system, kafka_address)
    answer = post(system, csv)
    assert answer.status == 422
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json
    assert problem["type"] == "urn:shrinkstream:problem:csv-rejected"
    assert problem["detail"]
    assert problem["errors"]
    assert requests_written(system, kafka_address) == before


def test_bad_row_rejects_upload_naming_every_bad_row(system: System, kafka_address: str) -> None:
    before = requests_written(system, kafka_address)
    answer = post(
        system, f"{HEADER}1,Shoe,http://example.com/a.jpg\n2,,http://example.com/b.jpg\n3,Sock,ftp://x/y\n".encode()
    )
    assert answer.status == 422
    assert [(error["row"], error["column"]) for error in answer.json["errors"]] == [
        (3, "Product Name"),
        (4, "Input Image URLs"),
    ]
    assert all(error["message"] for error in answer.json["errors"])
    assert requests_written(system, kafka_address) == before


@pytest.mark.parametrize(
    "url", ["ftp://example.com/", "http://user:secret@example.com/", "not a url", "http://127.0.0.1:1/"]
)
def test_unusable_webhook_url_is_rejected_at_upload(system: System, url: str) -> None:
    answer = post(system, f"{HEADER}1,Shoe,http://example.com/a.jpg\n".encode(), webhookUrl=url)
    assert (answer.status, answer.json["type"]) == (422, "urn:shrinkstream:problem:bad-webhook-url")
    assert "secret" not in answer.json["detail"]


@pytest.mark.parametrize("path", ["/api/status/", "/status/", "/api/download/"])
@pytest.mark.parametrize("request_id", ["9bac0942-8f8a-4ec0-a651-c1e60a2ce281", "nonsense", "..%2F..%2Fetc%2Fpasswd"])
def test_unknown_request_is_404(system: System, path: str, request_id: str) -> None:
    answer = call(system.url, "GET", path + request_id)
    assert (answer.status, answer.headers["content-type"]) == (404, "application/problem+json")


def test_download_before_completion_is_409(system: System, shop: Shop) -> None:
    request_id = post(system, f"{HEADER}1,Shoe,{shop.url}/slow\n".encode()).json["requestId"]
    answer = call(system.url, "GET", f"/api/download/{request_id}")
    assert (answer.status, answer.json["type"]) == (409, "urn:shrinkstream:problem:not-completed")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing/here", 404), ("DELETE", "/api/upload", 405), ("GET", "/images/../../etc/passwd", 404)],
)
def test_unknown_path_is_a_problem(system: System, method: str, path: str, status: int) -> None:
    answer = call(system.url, method, path)
    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json["status"] == status


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content-Type": "application/json"}, b"{}", 415),
        ({"Content-Type": "multipart/form-data"}, b"no boundary", 400),
        ({"Content-Type": "multipart/form-data; boundary=x"}, b"--x\r\nrubbish", 400),
        ({"Content-Type": "text/csv", "Content-Encoding": "compress"}, b"\x1f\x9d", 415),
    ],
    ids=["json", "no boundary", "broken form", "packed in an unknown way"],
)
def test_body_that_is_no_upload_is_rejected(system: System, headers: dict[str, str], body: bytes, status: int) -> None:
    answer = call(system.url, "POST", "/api/upload", body, headers)
    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json"), answer.body


def test_form_without_a_file_is_rejected(system: System) -> None:
    body, headers = curl_form(("webhookUrl", "http://example.com/"))
    answer = call(system.url, "POST", "/api/upload", body, headers)
    assert (answer.status, answer.json["type"]) == (422, "urn:shrinkstream:problem:file-missing")


def test_rejected_upload_leaves_no_file(system: System) -> None:
    post(system, b"no csv")
    assert list((system.data_dir / "spool").glob("upload-*")) == []
