"""The page against the whole running system, as people use it."""

import csv
import io
import os
import re
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.browser.visitor import HEADER, choose, expect_end, progress, start
from tests.e2e.browser.wire import Wire
from tests.e2e.conftest import System
from tests.support.published_clients import call, completed, upload
from tests.support.shop import Shop, photo

HOSTILE = '<img src=x onerror="document.title=1">&amp;'


@pytest.fixture(autouse=True)
def _slow_as_before(shop: Shop) -> Iterator[None]:
    before = shop.slow_seconds
    yield
    shop.slow_seconds = before


def test_csv_is_uploaded_followed_and_its_result_downloaded(page: Page, system: System, shop: Shop) -> None:
    urls = [shop.add(f"page-{number}.jpg") for number in range(3)]
    quoted = HOSTILE.replace('"', '""')
    page.goto(system.url)
    choose(page, f'{HEADER}1,"{quoted}","{urls[0]},{urls[1]}"\n2,Hat,{urls[2]}\n')
    expect(page.get_by_role("heading", name="products.csv is fine")).to_be_focused()
    expect(page.get_by_text("3 images in 2 rows. Nothing has started yet.")).to_be_visible()
    request_id = start(page)
    expect_end(page, "Completed")
    assert progress(page) == "100"
    expect(page.get_by_text("saved, 6", exact=False)).to_be_visible()  # the photos shrink by some 65 %
    expect(page.get_by_role("img", name=re.compile("were downloaded and .* stored"))).to_be_visible()
    # What a CSV says is text, whatever it looks like.
    expect(page.get_by_text(HOSTILE, exact=True)).to_have_count(2)

    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    assert download.value.suggested_filename == f"{request_id}.csv"
    header, *rows = csv.reader(io.StringIO(download.value.path().read_text(encoding="utf-8-sig")))
    assert header[-1] == "Output Image URLs"
    assert len(rows) == 2
    with page.expect_download() as archive:
        page.get_by_role("button", name="Download images (ZIP)").click()
    assert archive.value.suggested_filename == f"{request_id}.zip"
    with zipfile.ZipFile(archive.value.path()) as images:
        assert len(images.namelist()) == 3

    page.get_by_role("link", name="All requests").click()
    entry = page.get_by_role("link", name=re.compile(request_id[:8]))
    expect(entry).to_contain_text("3 images")
    expect(entry).to_contain_text("Completed")


def test_keyboard_moves_slider_between_original_and_compressed_image(page: Page, system: System, shop: Shop) -> None:
    request_id = upload(system.url, f"{HEADER}1,Lamp,{shop.add('slider.jpg')}\n2,Vase,{shop.add('slider-2.jpg')}\n")
    completed(system.url, request_id)
    page.goto(f"{system.url}/#/requests/{request_id}")
    page.get_by_role("button", name="Compare Lamp before and after").press("Enter")
    dialog = page.get_by_role("dialog", name="Lamp")
    slider = dialog.get_by_role("slider")
    expect(slider).to_be_focused()
    before = dialog.get_by_alt_text("Original")
    expect(before).to_have_css("clip-path", "inset(0px 50% 0px 0px)")
    page.keyboard.press("End")
    expect(before).to_have_css("clip-path", "inset(0px 0% 0px 0px)")
    page.keyboard.press("ArrowLeft")
    expect(slider).to_have_attribute("aria-valuetext", "99 % original")
    for picture in (before, dialog.get_by_alt_text("Compressed")):
        assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 320
    dialog.get_by_role("button", name="Next image").click()
    expect(page.get_by_role("dialog", name="Vase")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_invalid_csv_is_rejected_naming_each_bad_row(page: Page, system: System) -> None:
    page.goto(system.url)
    choose(page, f"{HEADER}1,,https://shop.example/a.jpg\n2,Hat,javascript:alert(1)\n", "bad.csv")
    expect(page.get_by_role("heading", name="bad.csv can't be used")).to_be_focused()
    expect(page.get_by_text("2 rows have to be corrected. Nothing was started.")).to_be_visible()
    rows = page.get_by_role("region", name="Errors").get_by_role("row")
    expect(rows.nth(1)).to_contain_text(re.compile("2.*Product Name.*empty"))
    expect(rows.nth(2)).to_contain_text(re.compile("3.*Input Image URLs.*javascript:alert"))
    expect(page.get_by_role("button", name=re.compile("^Compress"))).to_have_count(0)
    choose(page, "rubbish")
    expect(page.get_by_role("heading", name="products.csv can't be used")).to_be_focused()


def test_missing_columns_are_chosen_from_the_headers(page: Page, system: System, shop: Shop) -> None:
    page.goto(system.url)
    export = f'Handle;Title;Image Src;Note, "private"\nmug;Mug;x;{shop.add("chosen.jpg")}\n'
    choose(page, export, "export.csv")
    expect(page.get_by_label("Product Name")).to_have_value("Title")
    expect(page.get_by_label("Input Image URLs")).to_have_value("Image Src")
    page.get_by_label("Input Image URLs").select_option('Note, "private"')
    page.get_by_role("button", name="Check with these columns").click()
    expect(page.get_by_role("heading", name="export.csv is fine")).to_be_focused()
    start(page)
    expect_end(page, "Completed")
    expect(page.get_by_text("Mug", exact=True)).to_have_count(1)
    page.get_by_text("The same with curl").click()
    expect(page.get_by_text("columns=", exact=False)).to_be_visible()


def test_options_are_chosen_applied_and_remembered(page: Page, system: System, shop: Shop) -> None:
    page.goto(system.url)
    text = f"{HEADER}1,Lamp,{shop.add('with-options.jpg')}\n"
    choose(page, text)
    page.get_by_text("Format, quality and size: the server's defaults").click()
    page.get_by_label("Format").select_option("WebP")
    page.get_by_label("Quality").fill("101")
    page.get_by_role("button", name="Compress 1 image").click()
    expect(page.get_by_label("Quality")).to_have_js_property("validity.rangeOverflow", True)
    page.get_by_label("Automatic").check()
    expect(page.get_by_label("Quality")).to_be_disabled()
    expect(page.get_by_text(re.compile("WebP, automatic quality"))).to_be_visible()
    page.get_by_label("Automatic").uncheck()
    page.get_by_label("Quality").fill("30")
    page.get_by_label("Largest width").fill("100")
    request_id = start(page)
    expect_end(page, "Completed")
    (image,) = call(system.url, "GET", f"/api/requests/{request_id}/images").json["items"]
    assert (image["format"], image["width"], image["height"]) == ("webp", 100, 75)
    page.get_by_text("The same with curl").click()
    for option in ("format=webp", "quality=30", "maxWidth=100"):
        expect(page.get_by_text(f"--form-string {option}", exact=False)).to_be_visible()
    page.goto(system.url)
    page.reload()
    choose(page, text)
    expect(page.get_by_text(re.compile("WebP, quality 30, 100 . any"))).to_be_visible()
    expect(page.get_by_label("Largest width")).to_have_value("100")
    page.evaluate("""localStorage.setItem("shrinkstream.options", '{"quality": "auto"}')""")
    page.reload()
    choose(page, text)
    expect(page.get_by_label("Automatic")).to_be_checked()


def test_savings_are_estimated_from_the_first_images(page: Page, system: System, shop: Shop) -> None:
    shop.slow_seconds = 60.0
    urls = [shop.add(f"estimated-{number}.jpg") for number in range(4)]
    page.goto(system.url)
    choose(page, f'{HEADER}1,Lamp,"{",".join(urls)},{shop.url}/slow"\n')
    start(page)
    expect(page.get_by_text(re.compile("^about .+ of about .+ in the end$"))).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    expect_end(page, "Cancelled")
    expect(page.get_by_text("in the end", exact=False)).to_have_count(0)


def test_one_reason_is_retried_from_its_advice(page: Page, system: System, shop: Shop) -> None:
    late, share = f"{shop.url}/files/advice-late.jpg", shop.add("advice-page.jpg", b"<!doctype html><p>Share")
    request_id = upload(system.url, f'{HEADER}1,Lamp,"{late},{share}"\n')
    completed(system.url, request_id)
    page.goto(f"{system.url}/#/requests/{request_id}")
    expect_end(page, "2 failed")
    failures = page.get_by_role("region", name="What failed, and what to do")
    expect(failures).to_contain_text("not an image: a web page")
    shop.files["advice-late.jpg"] = photo(seed=79)
    failures.get_by_role("button", name="Retry these: 404").click()
    expect_end(page, "1 failed")
    expect(failures).not_to_contain_text("404")
    expect(failures).to_contain_text("Use the image's own URL")
    assert shop.fetched.count("advice-page.jpg") == 1


def test_files_are_deleted_after_a_question(page: Page, system: System, shop: Shop) -> None:
    request_id = upload(system.url, f"{HEADER}1,Lamp,{shop.add('page-deleted.jpg')}\n")
    completed(system.url, request_id)
    page.goto(f"{system.url}/#/requests/{request_id}")
    expect_end(page, "Completed")
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("button", name="Keep them").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect_end(page, "Completed")
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("button", name="Delete the files").click()
    expect_end(page, "Expired")
    expect(page.get_by_role("button", name="Download CSV")).to_be_hidden()
    page.get_by_role("button", name="Forget names").click()
    page.get_by_role("button", name="Forget them").click()
    expect(page.get_by_text("The images of this request are forgotten.")).to_be_visible()
    expect(page.get_by_role("button", name="Forget names")).to_be_hidden()


def test_start_shows_savings_of_last_30_days(page: Page, system: System, shop: Shop) -> None:
    """As a chart with words for those who don't see it, and as a table; absent while nothing is saved."""
    completed(system.url, upload(system.url, f"{HEADER}1,Lamp,{shop.add('page-savings.jpg')}\n"))
    page.goto(system.url)
    savings = page.get_by_role("region", name="Saved in the last 30 days")
    expect(savings.get_by_role("img", name=re.compile(" saved, most on "))).to_be_visible()
    assert savings.locator("rect").count() == 30
    savings.get_by_text("As a table").click()
    expect(savings.get_by_role("row")).not_to_have_count(1)
    nothing = {"day": "2026-11-28", "requests": 0, "images": 0, "failed": 0, "inputBytes": 0, "savedBytes": 0}
    page.route("**/api/stats", lambda route: route.fulfill(json={**nothing, "outputBytes": 0, "days": [nothing]}))
    with page.expect_response("**/api/stats"), page.expect_response("**/api/requests?*"):
        page.reload()
    expect(page.get_by_role("heading", name="Recent requests")).to_be_visible()
    expect(savings).to_be_hidden()


def test_names_are_forgotten_with_the_files_if_chosen(page: Page, system: System, shop: Shop) -> None:
    request_id = upload(system.url, f"{HEADER}1,Lamp,{shop.add('page-forgotten.jpg')}\n")
    completed(system.url, request_id)
    page.goto(f"{system.url}/#/requests/{request_id}")
    expect_end(page, "Completed")
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("checkbox", name="Also remove its product names and URLs").check()
    page.get_by_role("button", name="Delete the files").click()
    expect(page.get_by_text("The images of this request are forgotten.")).to_be_visible()


def test_dropped_file_is_uploaded(page: Page, system: System) -> None:
    page.goto(system.url)
    dropped = page.evaluate_handle(
        """text => {
            const data = new DataTransfer();
            data.items.add(new File([text], "dropped.csv"));
            return data;
        }""",
        f"{HEADER}1,Hat,https://shop.example/a.jpg\n",
    )
    page.get_by_text("Drop a CSV here").dispatch_event("drop", {"dataTransfer": dropped})
    expect(page.get_by_role("heading", name="dropped.csv is fine")).to_be_focused()


def test_later_file_wins_over_slow_check_of_earlier(page: Page, system: System) -> None:
    page.goto(system.url)
    choose(page, HEADER + "1,Hat,https://shop.example/a.jpg\n" * 200_000, "long.csv")
    with page.expect_event("requestfailed", lambda request: "validate_only" in request.url):  # it is given up
        choose(page, f"{HEADER}1,Hat,https://shop.example/a.jpg\n", "short.csv")
    expect(page.get_by_role("heading", name="short.csv is fine")).to_be_visible()


def test_pasted_urls_make_request_and_invalid_one_is_named(page: Page, system: System, shop: Shop) -> None:
    page.goto(system.url)
    field = page.get_by_label("Or paste image URLs, one per line")
    check = page.get_by_role("button", name="Check these URLs")
    check.click()
    expect(page.get_by_text("Paste at least one URL first.")).to_be_visible()
    url = shop.add("red%20shoe,1.jpg")
    shop.files["red shoe,1.jpg"] = photo()
    field.fill(f"{url}\nnonsense")
    check.click()
    expect(page.get_by_role("region", name="Errors").get_by_role("row").nth(1)).to_contain_text(
        re.compile("^2.*nonsense")
    )
    field.fill(f"{url}\n\n")
    check.click()
    start(page)
    expect_end(page, "Completed")
    expect(page.get_by_text("red shoe,1", exact=True)).to_be_visible()


def test_failed_image_shows_its_reason_and_is_retried(page: Page, system: System, shop: Shop) -> None:
    shop.add("page-good.jpg")
    page.goto(system.url)
    choose(page, f'{HEADER}1,Cup,"{shop.url}/files/page-good.jpg,{shop.url}/files/page-late.jpg"\n')
    start(page)
    expect_end(page, "1 failed")
    page.get_by_role("button", name="Failed 1").click()
    images = page.get_by_role("region", name="Images").get_by_role("listitem")
    expect(images).to_have_count(1)
    expect(images).to_contain_text("fetch_http_404")
    shop.files["page-late.jpg"] = photo(seed=9)
    page.get_by_role("button", name="Retry 1 failed").click()
    expect_end(page, "Completed")
    expect(page.get_by_text("No image has failed.")).to_be_visible()

    page.get_by_text("What happened when").click()
    log = page.get_by_role("listitem").filter(has=page.locator("time"))
    expect(log.filter(has_text="RequestCreated")).to_contain_text("A CSV of 1 row with 2 images was accepted")
    expect(log.filter(has_text="RequestRetried")).to_contain_text("Retry 1")
    expect(log.filter(has_text="RequestCompleted")).to_have_count(2)


def test_reload_resumes_a_running_request(page: Page, system: System, shop: Shop) -> None:
    shop.slow_seconds = 4
    page.goto(system.url)
    choose(page, f'{HEADER}1,Cup,"{shop.add("quick.jpg")},{shop.url}/slow"\n')
    start(page)
    expect(page.get_by_text("50 % · 1 of 2 images")).to_be_visible()
    page.reload()
    expect(page.get_by_text("50 % · 1 of 2 images")).to_be_visible()
    expect_end(page, "1 failed")
    assert progress(page) == "100"


def test_page_reconnects_after_a_broken_connection(
    page: Page, complaints: list[str], system: System, shop: Shop
) -> None:
    shop.slow_seconds = 4
    lost = page.get_by_text("The connection is lost; trying again")
    address = urlsplit(system.url)
    assert address.hostname
    assert address.port
    with Wire((address.hostname, address.port)) as wire:
        page.goto(wire.url)
        choose(page, f'{HEADER}1,Cup,"{shop.add("wired.jpg")},{shop.url}/slow"\n')
        start(page)
        expect(page.get_by_text("50 % · 1 of 2 images")).to_be_visible()
        wire.cut()
        expect(lost).to_be_visible()
        with page.expect_request(lambda request: request.url.endswith("/events")) as coming_back:
            wire.mend()
        assert coming_back.value.headers["last-event-id"]
        expect_end(page, "1 failed")
        expect(lost).to_be_hidden()
        page.goto("about:blank")
    assert complaints
    assert all("net::ERR_" in each for each in complaints)
    complaints.clear()


def test_large_request_is_paged_and_can_be_cancelled(page: Page, system: System, shop: Shop) -> None:
    shop.slow_seconds = 0.5  # what is under way when it is cancelled keeps its turns at the host until then
    rows = "".join(f"{number},Cup {number},{shop.url}/slow?{number}\n" for number in range(1, 10_001))
    request_id = upload(system.url, HEADER + rows)
    page.goto(f"{system.url}/#/requests/{request_id}")
    page.get_by_role("button", name="Cancel").press("Enter")
    expect_end(page, "Cancelled")
    expect(page.get_by_role("heading", level=1)).to_be_focused()  # the button that had the focus is gone
    expect(page.get_by_text("Page 1 of 417")).to_be_visible()
    page.get_by_role("button", name="Next").click()
    expect(page.get_by_text("Page 2 of 417")).to_be_visible()
    images = page.get_by_role("region", name="Images").get_by_role("listitem")
    expect(images).to_have_count(24)
    expect(images.first).to_contain_text(re.compile("(Image|Cup) 25"))  # cancelled, or already fetched
    page.get_by_role("button", name="Previous").click()
    expect(images.first).to_contain_text(re.compile("Image 1$|Cup 1|Image 1Not"))


def test_shown_commands_do_what_the_page_did(
    page: Page, system: System, shop: Shop, path_with_curl: str, tmp_path: Path
) -> None:
    name = 'it\'s; $(touch hacked), "ok".csv'
    content = f"{HEADER}1,Cup,{shop.add('curl.jpg')}\n"
    (tmp_path / name).write_text(content)
    page.goto(system.url)
    choose(page, content, name)
    request_id = start(page)
    expect_end(page, "Completed")
    page.get_by_text("The same with curl").click()

    def run(title: str) -> str:
        command = page.get_by_role("region", name=f"{title} with curl").inner_text()
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=tmp_path,
            env={**os.environ, "PATH": path_with_curl},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return done.stdout

    assert "was accepted" in run("Upload")
    assert f'"requestId":"{request_id}"' in run("Status")
    assert "event-stream" not in run("Download")
    assert {path.name for path in tmp_path.iterdir()} == {name, f"{request_id}.csv"}


def test_page_names_an_unknown_request(page: Page, complaints: list[str], system: System) -> None:
    page.goto(f"{system.url}/#/requests/nobody-knows-it")
    expect(page.get_by_text("there is no request nobody-knows-it")).to_be_visible()
    assert all("404" in each for each in complaints)
    complaints.clear()


def test_javascript_links_are_shown_as_text(page: Page, system: System) -> None:
    page.goto(system.url)
    for url in ("javascript:alert(1)", " javascript:alert(1)", "data:text/html,x", "//shop.example/", "nonsense"):
        assert page.evaluate("url => import('/page/dom.js').then(dom => dom.linkTo(url).tagName)", url) == "SPAN"
    assert page.evaluate("import('/page/dom.js').then(dom => dom.linkTo('https://shop.example/').tagName)") == "A"


def test_template_csv_is_accepted(page: Page, system: System) -> None:
    page.goto(system.url)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download a template").click()
    choose(page, download.value.path().read_text())
    expect(page.get_by_text("3 images in 2 rows.")).to_be_visible()


def test_page_has_csp_and_its_files_are_cached(system: System) -> None:
    answer = call(system.url, "GET", "/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    for path, kind in (("/page/app.js", "text/javascript"), ("/page/style.css", "text/css")):
        first = call(system.url, "GET", path)
        assert first.headers["content-type"] == f"{kind}; charset=utf-8"
        assert call(system.url, "GET", path, headers={"If-None-Match": first.headers["etag"]}).status == 304


@pytest.mark.parametrize(
    "path",
    ["/page/index.html", "/page/", "/page/..%2f..%2fapp.py", "/page/../../app.py", "/page/%2e%2e/docs.html", "/page/x"],
)
def test_only_files_of_the_page_are_served(path: str, system: System) -> None:
    assert call(system.url, "GET", path).status == 404
