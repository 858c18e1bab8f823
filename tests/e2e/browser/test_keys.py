"""The page where keys are set."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection

import pytest
from playwright.sync_api import Page, expect

from infra.devserver.ports import free_ports
from tests.e2e.browser.visitor import HEADER, choose, expect_end, start
from tests.e2e.conftest import System
from tests.support.shop import Shop


@pytest.fixture(scope="module")
def guarded(system: System) -> Iterator[str]:
    """The address of one more API of the system, which wants keys."""
    port = next(free_ports())
    process = subprocess.Popen(
        [sys.executable, "-m", "infra.cli", "api"],
        env={
            **os.environ,
            **system.environment,
            "SHRINKSTREAM_API_KEYS": "shop:sesame",
            "SHRINKSTREAM_PORT": str(port),
        },
    )
    try:
        deadline = time.monotonic() + 180
        while not _answers(port):
            assert process.poll() is None, "the API ended"
            assert time.monotonic() < deadline, "the API does not answer"
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()


def _answers(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def test_page_asks_for_key_and_keeps_it_in_tab(page: Page, complaints: list[str], guarded: str, shop: Shop) -> None:
    page.goto(guarded)
    dialog = page.get_by_role("dialog", name="This server requires an API key")
    dialog.get_by_label("API key").fill("wrong")
    page.keyboard.press("Enter")
    expect(dialog.get_by_text("That key was not accepted.")).to_be_visible()
    dialog.get_by_label("API key").fill("sesame")
    page.keyboard.press("Enter")
    expect(page.get_by_text("None yet.")).to_be_visible()

    choose(page, f"{HEADER}1,Cup,{shop.add('keyed.jpg')}\n")
    start(page)
    expect_end(page, "Completed")
    expect(page.get_by_role("img", name="").first).to_be_visible()
    with page.expect_download():
        page.get_by_role("button", name="Download CSV").click()
    with page.expect_download():
        page.get_by_role("button", name="Download images (ZIP)").click()
    page.reload()
    expect_end(page, "Completed")
    page.get_by_text("The same with curl").click()
    expect(page.get_by_role("region", name="Status with curl")).to_contain_text("Bearer $SHRINKSTREAM_API_KEY")

    kept = page.evaluate(
        "[...[sessionStorage, localStorage].map(all => JSON.stringify(all).includes('sesame')), document.cookie]"
    )
    assert kept == [True, False, ""]
    page.get_by_role("button", name="Forget key").click()
    expect(dialog).to_be_visible()
    assert all("401" in each for each in complaints)
    complaints.clear()
