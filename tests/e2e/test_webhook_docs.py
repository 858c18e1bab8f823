"""The programs in docs/webhooks.md do what they say."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from infra.devserver.ports import free_ports
from tests.e2e.conftest import System
from tests.support import markdown
from tests.support.published_clients import call, delivered, upload
from tests.support.shop import Shop

HEADER = "S. No.,Product Name,Input Image URLs\n"


@contextmanager
def running(program: str, **variables: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env={**os.environ, **variables}
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_receiver_and_consumer_hear_of_a_completion(system: System, shop: Shop, kafka_address: str) -> None:
    receiver, consumer = (block.text for block in markdown.read("docs/webhooks.md").of_language("python"))
    for program in (receiver, consumer):
        assert len([line for line in program.splitlines() if line.strip()]) <= 11
    request_id = upload(system.url, f"{HEADER}1,Shoe,{shop.add('docs.jpg')}\n", webhookUrl=f"{shop.url}/webhook/docs")
    status = delivered(system.url, request_id)

    for given, instead in (("127.0.0.1:9092", kafka_address), ("shrinkstream.requests", f"{system.name}.requests")):
        assert given in consumer
        consumer = consumer.replace(given, instead)
    with running(consumer) as process:
        assert process.stdout is not None
        heard = next(line for line in process.stdout if request_id in line)
        assert heard.split()[1] == status["outputCsvUrl"]

    (sent,) = shop.received(request_id)
    port = next(free_ports())
    assert "port=9000" in receiver
    with running(receiver.replace("port=9000", f"port={port}"), WEBHOOK_SECRET=shop.secret) as process:
        _wait_until_it_listens(port)
        headers = {name: value for name, value in sent.headers.items() if name != "host"}
        assert call(f"http://127.0.0.1:{port}", "POST", "/hook", sent.body, headers).status == 204
        tampered = call(f"http://127.0.0.1:{port}", "POST", "/hook", sent.body.replace(b"1", b"2"), headers)
        assert tampered.status == 500
        assert process.stdout is not None
        heard = next(line for line in process.stdout if line.startswith("msg_"))
        assert heard.split() == [sent.headers["webhook-id"], status["outputCsvUrl"]]


def _wait_until_it_listens(port: int) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert time.monotonic() < deadline, "it does not listen"
            time.sleep(0.05)
        else:
            return
