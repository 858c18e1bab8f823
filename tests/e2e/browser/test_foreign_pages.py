"""What pages of other sites can do to an API without keys, in a browser that sends the headers of browsers."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, Response

from tests.e2e.browser.visitor import HEADER
from tests.e2e.conftest import System
from tests.support.chromium import EVIL
from tests.support.published_clients import call, upload, wait_for
from tests.support.shop import Shop

POST_FORM = """([url, csv]) => {
    const form = document.body.appendChild(document.createElement("form"));
    Object.assign(form, {action: url, method: "post", enctype: "multipart/form-data"});
    const file = form.appendChild(document.createElement("input"));
    const files = new DataTransfer();
    files.items.add(new File([csv], "products.csv", {type: "text/csv"}));
    Object.assign(file, {type: "file", name: "file", files: files.files});
    form.submit();
}"""
SHOW = """url => new Promise(resolve => {
    const image = new Image();
    image.onload = () => resolve(image.naturalWidth);
    image.onerror = () => resolve(0);
    image.src = url;
})"""


class _Blank(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def foreign_page(page: Page) -> Iterator[Page]:
    """A page of another site, on this machine: Chromium asks before a page of a public address reaches loopback."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Blank) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        page.goto(f"http://{EVIL}:{server.server_port}/")
        yield page
        server.shutdown()


def requests_of(system: System) -> set[str]:
    return {item["requestId"] for item in call(system.url, "GET", "/api/requests?limit=200").json["items"]}


def answer_to_form(page: Page, url: str) -> Response:
    with page.expect_navigation() as answered:
        page.evaluate(POST_FORM, [url, f"{HEADER}1,Cup,http://shop.example/cup.jpg\n"])
    return answered.value


# To the last two, a browser sends no Sec-Fetch-Site: they are no trustworthy addresses.
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "[::ffff:127.0.0.1]"])
def test_foreign_page_uploads_nothing(foreign_page: Page, complaints: list[str], system: System, host: str) -> None:
    before = requests_of(system)
    answer = answer_to_form(foreign_page, f"http://{host}:{urlsplit(system.url).port}/api/upload")
    assert answer.status == 403
    assert requests_of(system) == before
    complaints.clear()  # of the 403


def test_own_page_uploads(page: Page, system: System) -> None:
    page.goto(f"{system.url}/healthz")
    assert answer_to_form(page, f"{system.url}/api/upload").status == 202


def test_rebound_name_reads_nothing(page: Page, complaints: list[str], system: System) -> None:
    answer = page.goto(f"http://{EVIL}:{urlsplit(system.url).port}/api/requests")
    assert answer is not None
    assert answer.status == 403
    assert "DNS-rebinding protection" in page.content()
    complaints.clear()  # of the 403


def test_foreign_page_shows_images_only(foreign_page: Page, complaints: list[str], system: System, shop: Shop) -> None:
    request_id = upload(system.url, f"{HEADER}1,Cup,{shop.add('embedded.jpg')}\n")
    wait_for(system.url, request_id, "status", "completed", 90)
    (image,) = call(system.url, "GET", f"/api/requests/{request_id}/images").json["items"]
    assert foreign_page.evaluate(SHOW, image["outputUrl"]) > 0
    assert complaints == []
    assert foreign_page.evaluate(SHOW, f"{system.url}/api/status/{request_id}") == 0
    complaints.clear()
