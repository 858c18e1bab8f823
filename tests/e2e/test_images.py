"""What becomes of images: the options of an upload, the same URL many times, small requests beside large ones."""

import csv
import http.client
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from infra.errors import EXIT_REFUSED
from streams.compress.codec.auto_quality import QUALITIES
from tests.e2e.conftest import System
from tests.support.published_clients import call, completed, curl_form, upload
from tests.support.shop import Shop
from tests.support.spreadsheets import xlsx
from tests.support.topic_reader import read_topic

HEADER = "S. No.,Product Name,Input Image URLs\n"


def csv_of(*urls: str) -> str:
    return HEADER + "".join(f"{number},Product {number},{url}\n" for number, url in enumerate(urls, 1))


def outputs(system: System, request_id: str) -> list[bytes]:
    """The stored images of a completed request, in its order."""
    text = call(system.url, "GET", f"/api/download/{request_id}").body.decode("utf-8-sig")
    links = [row["Output Image URLs"] for row in csv.DictReader(io.StringIO(text))]
    return [call(system.url, "GET", link.removeprefix(system.url)).body for link in links]


@pytest.mark.parametrize("wanted", ["webp", "avif", "png", "jpeg"])
def test_images_have_the_format_of_the_upload(system: System, shop: Shop, wanted: str) -> None:
    request_id = upload(system.url, csv_of(shop.add(f"photo-for-{wanted}.jpg")), format=wanted)
    assert completed(system.url, request_id)["succeeded"] == 1
    (image,) = outputs(system, request_id)
    assert Image.open(io.BytesIO(image)).format == wanted.upper()


def test_images_have_the_quality_of_the_upload(system: System, shop: Shop) -> None:
    """In the query of a raw upload as well as in a form; the same URL in two qualities is two images."""
    text = csv_of(shop.add("in-two-qualities.jpg")).encode()
    sizes = []
    for quality in (20, 80):
        answer = call(system.url, "POST", f"/api/upload?quality={quality}", text, {"Content-Type": "text/csv"})
        request_id = answer.json["requestId"]
        completed(system.url, request_id)
        sizes.append(len(outputs(system, request_id)[0]))
    assert sizes[0] < sizes[1] / 1.5


def test_auto_quality_is_told_in_the_event(system: System, shop: Shop, kafka_address: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(csv_of(shop.add("by-eye.jpg")))
    ended = system.run("submit", str(tmp_path / "a.csv"), "--no-wait", "--quality", "auto", "--format", "webp")
    request_id = ended.stdout.strip()
    completed(system.url, request_id)
    (image,) = outputs(system, request_id)
    (event,) = [
        json.loads(record.value())
        for record in read_topic(kafka_address, f"{system.name}.image-results")
        if record.key() == request_id.encode()
    ]
    assert event["data"]["quality"] in QUALITIES
    assert event["data"]["outputBytes"] == len(image)


def test_command_line_sends_format_and_quality(system: System, shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(csv_of(shop.add("from-the-command-line.jpg")))
    ended = system.run("submit", str(tmp_path / "a.csv"), "--no-wait", "--format", "webp", "--quality", "30")
    request_id = ended.stdout.strip()
    completed(system.url, request_id)
    (image,) = outputs(system, request_id)
    assert Image.open(io.BytesIO(image)).format == "WEBP"


def test_images_fit_inside_the_size_of_the_upload(system: System, shop: Shop, tmp_path: Path) -> None:
    """The same URL in two sizes is two images; 0 is no limit."""
    url = shop.add("in-two-sizes.jpg")
    (tmp_path / "a.csv").write_text(csv_of(url))
    for options, size in (
        (("--max-width", "160", "--max-height", "0"), (160, 120)),
        (("--max-width", "640"), (320, 240)),
    ):
        request_id = system.run("submit", str(tmp_path / "a.csv"), "--no-wait", *options).stdout.strip()
        completed(system.url, request_id)
        (image,) = outputs(system, request_id)
        assert Image.open(io.BytesIO(image)).size == size
        (told,) = call(system.url, "GET", f"/api/requests/{request_id}/images").json["items"]
        assert (told["width"], told["height"]) == size


def test_spreadsheet_becomes_output_csv(system: System, shop: Shop, tmp_path: Path) -> None:
    rows = [["S. No.", "Product Name", "Input Image URLs"], ["1", "Mug", shop.add("in-a-sheet.jpg")]]
    (tmp_path / "products.xlsx").write_bytes(xlsx(rows))
    ended = system.run("submit", str(tmp_path / "products.xlsx"), "--output", str(tmp_path / "out.csv"))
    assert ended.returncode == 0, ended.stderr
    header, row = csv.reader(io.StringIO((tmp_path / "out.csv").read_text("utf-8-sig")))
    assert (header, row[:3]) == ([*rows[0], "Output Image URLs"], rows[1])
    body = xlsx([*rows, ["2", "Hat", "nowhere"]])
    for media_type in ("application/vnd.openxmlformats-officedocument.spreadsheetml.sheet", "application/octet-stream"):
        answer = call(system.url, "POST", "/api/upload", body, {"Content-Type": media_type})
        assert answer.status == 422
        assert [(error["row"], error["code"]) for error in answer.json["errors"]] == [(3, "url_scheme")]


def test_command_line_maps_columns_of_an_export(system: System, shop: Shop, tmp_path: Path) -> None:
    export = f"Handle;Title;Image, large\nmug;Mug;{shop.add('exported.jpg')}\n"
    (tmp_path / "export.csv").write_text(export)
    submit = ("submit", str(tmp_path / "export.csv"), "--columns")
    ended = system.run(*submit, 'product:Title,"urls:Image, large"', "--output", str(tmp_path / "out.csv"))
    assert ended.returncode == 0, ended.stderr
    header, row = csv.reader(io.StringIO((tmp_path / "out.csv").read_text("utf-8-sig")))
    assert header == ["Handle", "Title", "Image, large", "Output Image URLs"]
    assert row[:2] == ["mug", "Mug"]
    refused = system.run(*submit, "product:Title,urls:Image Src")
    assert refused.returncode == EXIT_REFUSED
    assert "line 1, Image Src: the column “Image Src” (mapped to urls) is missing" in refused.stderr


@pytest.mark.parametrize(
    "field",
    [
        ("quality", "0"),
        ("quality", "101"),
        ("quality", "best"),
        ("quality", "5.5"),
        ("format", "bmp"),
        ("maxWidth", "65536"),
        ("maxHeight", "-1"),
        ("columns", "name:Title"),
    ],
)
def test_meaningless_option_rejects_the_upload(system: System, shop: Shop, field: tuple[str, str]) -> None:
    body, headers = curl_form(("file", "a.csv", csv_of(shop.add("unused.jpg")).encode()), field)
    answer = call(system.url, "POST", "/api/upload", body, headers)
    assert answer.status == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert field[0] in answer.json["detail"]


def test_repeated_url_is_fetched_once_and_stored_for_each(system: System, shop: Shop) -> None:
    url = shop.add("popular.jpg")
    first = upload(system.url, csv_of(*[url] * 40))
    assert completed(system.url, first)["succeeded"] == 40
    again = upload(system.url, csv_of(url, url))
    assert completed(system.url, again)["succeeded"] == 2
    assert shop.fetched.count("popular.jpg") == 1
    images = [*outputs(system, first), *outputs(system, again)]
    assert len(images) == 42
    assert len(set(images)) == 1


def archive_of(system: System, request_id: str, query: str = "") -> dict[str, bytes]:
    answer = call(system.url, "GET", f"/api/requests/{request_id}/archive.zip{query}")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/zip"), answer.body[:500]
    with zipfile.ZipFile(io.BytesIO(answer.body)) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def test_archive_has_the_images_that_succeeded(system: System, shop: Shop) -> None:
    urls = [shop.add("archived-1.jpg"), f"{shop.url}/files/no-such.jpg", shop.add("archived-3.jpg")]
    request_id = upload(system.url, f'{HEADER}1,A/B: "mug","{",".join(urls)}"\n', format="webp")
    completed(system.url, request_id)
    path = f"/api/requests/{request_id}/archive.zip"
    links = [item["outputUrl"] for item in call(system.url, "GET", f"/api/requests/{request_id}/images").json["items"]]
    images = [call(system.url, "GET", link.removeprefix(system.url)).body for link in links if link]
    names = ["1 A_B_ _mug_.webp", "3 A_B_ _mug_.webp"]
    assert archive_of(system, request_id) == dict(zip(names, images, strict=True))
    assert archive_of(system, request_id, "?from=2") == {names[1]: images[1]}
    head = call(system.url, "HEAD", f"{path}?from=2")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-disposition"] == f'attachment; filename="{request_id}-from-2.zip"'
    for bad in ("0", "4", "-1", "x", "1.5", "9" * 30):
        refused = call(system.url, "GET", f"{path}?from={bad}")
        assert (refused.status, refused.json["type"]) == (400, "urn:shrinkstream:problem:bad-query")
        assert "from" in refused.json["detail"]
    assert call(system.url, "GET", path.replace(request_id, "unknown")).status == 404


def test_archive_without_an_image_breaks_off(system: System, shop: Shop) -> None:
    request_id = upload(system.url, csv_of(shop.add("kept.jpg"), shop.add("lost.jpg")))
    completed(system.url, request_id)
    (lost,) = system.data_dir.rglob(f"{request_id}/1.jpg")
    lost.unlink()
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        archive_of(system, request_id)
    refused = call(system.url, "GET", f"/api/requests/{request_id}/archive.zip?from=2")
    assert (refused.status, refused.json["type"]) == (410, "urn:shrinkstream:problem:output-gone")
    assert "image 2" in refused.json["detail"]


def test_failed_download_is_repeated_for_a_later_request(system: System, shop: Shop) -> None:
    url = f"{shop.url}/files/not-yet.jpg"
    assert completed(system.url, upload(system.url, csv_of(url)))["failed"] == 1
    shop.add("not-yet.jpg")
    assert completed(system.url, upload(system.url, csv_of(url)))["succeeded"] == 1


def status(system: System, request_id: str) -> Any:
    return call(system.url, "GET", f"/api/status/{request_id}").json


def test_small_request_does_not_wait_behind_large_one(system: System, shop: Shop) -> None:
    url = shop.add("one-of-many.jpg")
    large = upload(system.url, csv_of(*(f"{url}?number={number}" for number in range(2_000))))
    small = upload(system.url, csv_of(*(f"{url}?small={number}" for number in range(3))))
    assert completed(system.url, small)["succeeded"] == 3
    beside = status(system, large)
    assert beside["status"] == "processing"
    assert beside["succeeded"] < 1_500
    assert completed(system.url, large, timeout=180)["succeeded"] == 2_000
