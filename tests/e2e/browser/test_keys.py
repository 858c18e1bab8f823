"""The page where keys are set."""

from playwright.sync_api import Page, expect

from tests.e2e.browser.visitor import HEADER, choose, expect_end, start
from tests.support.shop import Shop


def test_page_asks_for_key_and_keeps_it_in_tab(page: Page, complaints: list[str], guarded_url: str, shop: Shop) -> None:
    page.goto(guarded_url)
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
    page.route(
        "**/api/status/*", lambda route: route.fulfill(json={**route.fetch().json(), "outputBytes": 600_000_000})
    )
    page.reload()
    page.get_by_role("button", name="Download images (ZIP)").click()
    expect(page.get_by_role("alert")).to_contain_text("shrinkstream download ID --images DIR")
    page.unroute("**/api/status/*")
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
