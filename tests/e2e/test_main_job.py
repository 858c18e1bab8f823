"""A CSV goes through the whole system."""

import csv
import io

from PIL import Image
from standardwebhooks import Webhook

from tests.e2e.conftest import System
from tests.support.published_clients import call, completed, delivered, upload
from tests.support.shop import Shop

HEADER = "S. No.,Product Name,Input Image URLs\n"


def rows_of(content: bytes) -> list[list[str]]:
    assert content.startswith(b"\xef\xbb\xbf")
    return list(csv.reader(io.StringIO(content.decode("utf-8-sig"))))


def path_of(url: str, system: System) -> str:
    assert url.startswith(system.url + "/images/")
    return url.removeprefix(system.url)


def test_output_urls_lead_to_smaller_images_in_place(system: System, shop: Shop) -> None:
    urls = [shop.add(f"main-{number}.jpg") for number in range(4)]
    request_id = upload(system.url, f'{HEADER}1,Shoe,"{urls[0]},{urls[1]}"\n2,"Hat, red",{urls[2]}\n3,Sock,{urls[3]}\n')
    status = completed(system.url, request_id)
    assert (status["total"], status["succeeded"], status["failed"], status["progress"]) == (4, 4, 0, 100)
    assert 0 < status["outputBytes"] < status["inputBytes"] == sum(len(shop.files[f"main-{n}.jpg"]) for n in range(4))

    answer = call(system.url, "GET", f"/api/download/{request_id}")
    assert answer.headers["content-disposition"].startswith("attachment")
    header, *rows = rows_of(answer.body)
    assert header == ["S. No.", "Product Name", "Input Image URLs", "Output Image URLs"]
    assert [row[:3] for row in rows] == [
        ["1", "Shoe", f"{urls[0]},{urls[1]}"],
        ["2", "Hat, red", urls[2]],
        ["3", "Sock", urls[3]],
    ]
    outputs = [url for row in rows for url in row[3].split(",")]
    for number, url in enumerate(outputs):
        image = call(system.url, "GET", path_of(url, system))
        assert image.headers["content-type"] == "image/jpeg"
        assert len(image.body) < len(shop.files[f"main-{number}.jpg"])
        Image.open(io.BytesIO(image.body)).load()


def test_bad_image_fails_with_reason_and_others_succeed(system: System, shop: Shop) -> None:
    good = shop.add("good.jpg")
    rubbish = shop.add("rubbish.jpg", b"this is no image at all")
    missing = f"{shop.url}/files/missing.jpg"
    forbidden = "http://10.1.2.3/private.jpg"
    request_id = upload(system.url, f'{HEADER}1,Shoe,"{good},{missing},{rubbish}"\n2,Hat,{forbidden}\n')
    status = completed(system.url, request_id)
    assert (status["total"], status["succeeded"], status["failed"]) == (4, 1, 3)
    header, first, second = rows_of(call(system.url, "GET", f"/api/download/{request_id}").body)
    assert header[-2:] == ["Output Image URLs", "Errors"]
    assert first[3].endswith("/0.jpg,,")
    assert first[4] == "image 2: fetch_http_404; image 3: not_an_image"
    assert second[3:] == ["", "image 1: fetch_forbidden_address"]


def test_silent_host_fails_its_image_within_the_deadline(system: System, shop: Shop) -> None:
    request_id = upload(system.url, f"{HEADER}1,Shoe,{shop.url}/slow\n")
    assert completed(system.url, request_id)["failed"] == 1
    assert b"fetch_timeout" in call(system.url, "GET", f"/api/download/{request_id}").body


def test_webhook_arrives_once_signed_with_the_status(system: System, shop: Shop) -> None:
    url = shop.add("hook.jpg")
    request_id = upload(system.url, f"{HEADER}1,Shoe,{url}\n", webhookUrl=f"{shop.url}/webhook/once")
    status = completed(system.url, request_id)
    assert status["webhook"] in ("pending", "delivered")
    (delivery,) = shop.wait_for_deliveries(request_id, 1)
    body = Webhook(shop.secret).verify(delivery.body, delivery.headers)
    assert body["type"] == "request.completed"
    told = body["data"]
    status = delivered(system.url, request_id)
    assert (told["requestId"], told["status"], told["progress"]) == (request_id, "completed", 100)
    assert told["outputCsvUrl"] == f"{system.url}/api/download/{request_id}" == status["outputCsvUrl"]


def test_failing_receiver_is_called_again_with_same_id(system: System, shop: Shop) -> None:
    shop.webhook_answers["twice"] = [500]
    request_id = upload(
        system.url, f"{HEADER}1,Shoe,{shop.add('twice.jpg')}\n", webhook_url=f"{shop.url}/webhook/twice"
    )
    completed(system.url, request_id)
    deliveries = shop.wait_for_deliveries(request_id, 2)
    assert len({delivery.headers["webhook-id"] for delivery in deliveries}) == 1


def test_extra_columns_are_copied_to_the_output(system: System, shop: Shop) -> None:
    url = shop.add("extra.jpg")
    request_id = upload(system.url, f"Colour;Product Name;S. No.;Input Image URLs\r\nred;Shoe;7;{url}\r\n")
    completed(system.url, request_id)
    header, row = rows_of(call(system.url, "GET", f"/api/download/{request_id}").body)
    assert header == ["Colour", "Product Name", "S. No.", "Input Image URLs", "Output Image URLs"]
    assert row[:4] == ["red", "Shoe", "7", url]


def test_request_over_several_chunks_completes(system: System, shop: Shop) -> None:
    url = shop.add("many.jpg")
    rows = "".join(f"{number},Product {number},{url}\n" for number in range(1, 1203))
    request_id = upload(system.url, HEADER + rows)
    status = completed(system.url, request_id)
    assert (status["total"], status["succeeded"]) == (1202, 1202)
    _, *written = rows_of(call(system.url, "GET", f"/api/download/{request_id}").body)
    assert [row[0] for row in written] == [str(number) for number in range(1, 1203)]
    assert all(row[3].endswith(f"/{number}.jpg") for number, row in enumerate(written))
