"""The page in a Chromium. ``TEST_SCREENSHOTS`` names a folder in which the screenshots stay."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect

from tests.support.chromium import launched

SECONDS = 90

# Of the package, not of the session: while Playwright's event loop runs in this thread, asyncio.run can't.


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    expect.set_options(timeout=SECONDS * 1000)
    with launched() as browser:
        if browser is None:
            pytest.skip("no Chromium on the PATH, and npm has one for Linux on x86-64 only (or set TEST_CHROMIUM)")
        yield browser


@pytest.fixture
def complaints() -> list[str]:
    """What the browser complains of in its console. Whoever expects some takes them out."""
    return []


@pytest.fixture
def context(chromium: Browser, complaints: list[str]) -> Iterator[BrowserContext]:
    """A window of its own, in which nothing may be complained of."""

    def note(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            complaints.append(message.text)

    with chromium.new_context(viewport={"width": 1200, "height": 900}) as opened:
        opened.set_default_timeout(SECONDS * 1000)
        opened.on("console", note)
        opened.on("weberror", lambda error: complaints.append(str(error.error)))
        yield opened
    assert complaints == []


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()


@pytest.fixture
def picture(tmp_path: Path) -> Callable[[Page, str], None]:
    """Takes a picture of all of the page."""
    folder = Path(os.environ.get("TEST_SCREENSHOTS", tmp_path))

    def take(page: Page, name: str) -> None:
        page.screenshot(path=folder / f"{name}.png", full_page=True)

    return take
