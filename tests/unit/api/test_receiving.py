"""An upload on its way in, over real HTTP and without what comes after it."""

import asyncio
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from api.http.problems import problem_middleware
from api.uploads import receive as receiving
from infra.settings import Settings

HEADERS = "POST / HTTP/1.1\r\nHost: x\r\nContent-Type: {}\r\nTransfer-Encoding: chunked\r\n\r\n"
FORM_BEGUN = b'2f\r\n--b\r\nContent-Disposition: form-data; name="file\r\n'


@pytest.mark.parametrize(
    ("content_type", "begun"),
    [
        ("text/csv", b""),
        ("text/csv", b"5\r\nS. No\r\n"),
        ("multipart/form-data; boundary=b", b""),
        ("multipart/form-data; boundary=b", FORM_BEGUN),
    ],
    ids=["nothing of a CSV", "some of a CSV", "nothing of a form", "some of a form"],
)
async def test_stalled_upload_is_given_up_and_its_file_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content_type: str, begun: bytes
) -> None:
    monkeypatch.setattr(receiving, "READ_TIMEOUT", 0.2)
    settings = Settings(data_dir=tmp_path)

    async def receive(request: web.Request) -> web.Response:
        async with receiving.receive(request, settings):
            return web.Response()

    app = web.Application(middlewares=[problem_middleware])
    app.add_routes([web.post("/", receive)])
    async with TestClient(TestServer(app, host="127.0.0.1")) as client:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
        writer.write(HEADERS.format(content_type).encode() + begun)
        async with asyncio.timeout(60):
            answer = await reader.readuntil(b"}")
        writer.close()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"urn:shrinkstream:problem:upload-too-slow" in answer
    assert list((tmp_path / "spool").iterdir()) == []


CSV = "S. No.,Product Name,Input Image URLs\n1,Mug,https://shop.example/mug.jpg\n"


@pytest.mark.filterwarnings("ignore::aiohttp.BadContentDispositionHeader")
@pytest.mark.parametrize(
    ("part", "answered"),
    [
        ('name="file"; filename="shoes; bags; hats.csv"', CSV),
        ('name="csv"; filename="shoes; bags; hats.csv"', CSV),
        ("name=file; filename=products(1).csv", CSV),
        ('name="file"; filename*0="it\'s a very long"; filename*1=".csv"', CSV),
        ("name=\"file\"; filename*=UTF-8''%e2%82%ac.csv", CSV),
        ('name="file"; filename="a.csv"\r\nContent-Transfer-Encoding: 8bit', CSV),
        ('name="file"; filename="a.csv"\r\nContent-Transfer-Encoding: base64', "Content-Transfer-Encoding 'base64'"),
        ('name="other"', "the form has no file"),
    ],
)
async def test_form_is_read_as_clients_send_it(tmp_path: Path, part: str, answered: str) -> None:
    settings = Settings(data_dir=tmp_path)

    async def receive(request: web.Request) -> web.Response:
        async with receiving.receive(request, settings) as received:
            return web.Response(text=received.path.read_text())

    app = web.Application(middlewares=[problem_middleware])
    app.add_routes([web.post("/", receive)])
    body = f"--b\r\nContent-Disposition: form-data; {part}\r\n\r\n{CSV}\r\n--b--\r\n"
    async with (
        TestClient(TestServer(app, host="127.0.0.1")) as client,
        client.post("/", data=body, headers={"Content-Type": "multipart/form-data; boundary=b"}) as answer,
    ):
        assert answered in await answer.text()


async def test_upload_that_drips_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "RATE_SECONDS", 0.5)
    settings = Settings(data_dir=tmp_path)

    async def receive(request: web.Request) -> web.Response:
        async with receiving.receive(request, settings):
            return web.Response()

    async def drip(writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"1\r\nx\r\n")
            await asyncio.sleep(0.05)

    app = web.Application(middlewares=[problem_middleware])
    app.add_routes([web.post("/", receive)])
    async with TestClient(TestServer(app, host="127.0.0.1")) as client:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
        writer.write(HEADERS.format("text/csv").encode())
        dripping = asyncio.create_task(drip(writer))
        async with asyncio.timeout(60):
            answer = await reader.readuntil(b"}")
        dripping.cancel()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"less than 600,000 bytes in 0.5 s" in answer
