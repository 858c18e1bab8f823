"""What somebody at the page does."""

import re

from playwright.sync_api import Page, expect

HEADER = "S. No.,Product Name,Input Image URLs\n"


def choose(page: Page, csv: str, name: str = "products.csv") -> None:
    """Choose a CSV on the first view."""
    page.get_by_label("Drop a CSV here").set_input_files({"name": name, "mimeType": "text/csv", "buffer": csv.encode()})


def start(page: Page) -> str:
    """Start what was chosen; returns the request's id, which stands in the address."""
    page.get_by_role("button", name=re.compile("^Compress ")).click()
    page.wait_for_url(re.compile("#/requests/"))
    return page.url.rpartition("/")[2]


def expect_end(page: Page, state: str) -> None:
    expect(page.get_by_role("heading", level=1)).to_contain_text(state)


def progress(page: Page) -> str | None:
    return page.get_by_role("progressbar", name="Progress").get_attribute("value")
