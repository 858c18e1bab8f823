"""The page for every eye and hand: screen readers, dark mode, phones."""

import re
from collections.abc import Callable
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.e2e.browser.visitor import HEADER, choose, expect_end
from tests.e2e.conftest import System
from tests.support.published_clients import completed, upload
from tests.support.shop import Shop

LONG_WORD = "Donaudampfschifffahrtsgesellschaftskapitaensmuetze" * 3


@pytest.fixture(scope="module")
def request_id(system: System, shop: Shop) -> str:
    """A request with all that the page can show of one."""
    rows = "".join(f"{n},Lamp {n},{shop.add(f'looks-{n}.jpg')}\n" for n in range(26))
    made = upload(system.url, f"{HEADER}99,{LONG_WORD},{shop.url}/files/{LONG_WORD}.jpg\n{rows}")
    completed(system.url, made)
    return made


def month() -> dict[str, Any]:
    """Statistics of a busy month."""
    names = ("requests", "images", "failed", "inputBytes", "outputBytes", "savedBytes")
    days = [
        dict(zip(names, (n, 400 * n, n, 6e7 * n, 2e7 * n, 4e7 * n), strict=True))
        for n in (7 * number % 12 for number in range(30))
    ]
    sums = {name: sum(day[name] for day in days) for name in names}
    return {**sums, "days": [{**day, "day": f"2026-11-{number + 1:02}"} for number, day in enumerate(days)]}


def violations(page: Page) -> list[Any]:
    # Colours that are still on their way would be judged.
    page.evaluate("Promise.all(document.getAnimations().map(each => each.finished))")
    return [
        (each["impact"], each["id"], [node["html"] for node in each["nodes"]])
        for each in Axe().run(page).response["violations"]
    ]


def test_accessibility_check_finds_known_violations(page: Page, system: System) -> None:
    page.goto(system.url)
    page.evaluate("document.querySelector('main').append(document.createElement('button'))")
    assert [name for _, name, _ in violations(page)] == ["button-name"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_have_no_accessibility_violations_and_no_overflow(
    page: Page,
    system: System,
    request_id: str,
    picture: Callable[[Page, str], None],
    scheme: Literal["light", "dark"],
    width: int,
) -> None:
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.set_viewport_size({"width": width, "height": 900})

    def look(name: str) -> None:
        picture(page, f"{name}-{scheme}-{width}")
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") == width

    page.route("**/api/stats", lambda route: route.fulfill(json=month()))
    page.goto(system.url)
    expect(page.get_by_role("link", name="27 images")).to_be_visible()
    expect(page.get_by_role("img", name=re.compile(" saved, most on "))).to_be_visible()
    look("start")
    page.get_by_text("As a table").click()
    look("savings")
    choose(page, f"{HEADER}1,Hat,https://shop.example/a.jpg\n")
    expect(page.get_by_role("button", name="Compress 1 image")).to_be_visible()
    page.get_by_text("Format, quality and size").click()
    page.get_by_label("Automatic").check()
    look("fine")
    choose(page, f"{HEADER}1,,{LONG_WORD}\n")
    expect(page.get_by_role("region", name="Errors")).to_be_visible()
    look("errors")
    choose(page, "Handle,Title,Image Src\nmug,Mug,https://shop.example/a.jpg\n")
    expect(page.get_by_role("button", name="Check with these columns")).to_be_visible()
    look("columns")
    page.goto(f"{system.url}/#/requests/{request_id}")
    expect_end(page, "1 failed")
    expect(page.get_by_role("button", name="Compare Lamp 1 before and after")).to_be_visible()
    for summary in ("What happened when", "The same with curl"):
        page.get_by_text(summary).click()
    expect(page.get_by_text("RequestCompleted")).to_be_visible()
    expect(page.get_by_role("button", name="Retry these: 404")).to_be_visible()
    expect(page.get_by_role("button", name="Download images (ZIP)")).to_be_visible()
    look("request")
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.get_by_role("checkbox", name="Also remove its product names and URLs")).to_be_visible()
    look("delete")
    page.get_by_role("button", name="Keep them").click()
    page.get_by_role("button", name="Compare Lamp 0 before and after").click()
    expect(page.get_by_role("slider")).to_be_visible()
    look("slider")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(background) < 64) == (scheme == "dark")


def test_every_control_is_reachable_by_keyboard(page: Page, system: System, request_id: str) -> None:
    page.goto(f"{system.url}/#/requests/{request_id}")
    expect_end(page, "1 failed")
    expect(page.get_by_role("button", name="Compare Lamp 1 before and after")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("(document.activeElement.ariaLabel || document.activeElement.innerText || '').trim()")
        )
    for name in (
        "Requests",
        "All requests",
        "Retry 1 failed",
        "Download CSV",
        "Download images (ZIP)",
        "Failed 1",
        "Next",
        "What happened when",
    ):
        assert name in reached
    assert "Compare Lamp 1 before and after" in reached
