"""Every command in the documents does what they say, in their order, against a system that was started by them.

What is changed before a command is run stands in `SUBSTITUTIONS`. Not run here are commands marked with what they need
beside a shell (docker, kubectl, Kafka's own tools), and those of make, which other tests run.
"""

import csv
import io
import json
import os
import re
from pathlib import Path
from typing import Any

from infra.cassandra.schema import migrations
from infra.devserver.ports import free_ports
from infra.settings import PREFIX, parse_webhook_secrets
from tests.e2e.conftest import System
from tests.support import markdown
from tests.support.markdown import ROOT, Block
from tests.support.published_clients import completed, upload
from tests.support.shell import reader_folder, run_blocks
from tests.support.shop import Shop

# Text of a document → what is run in its place.
SUBSTITUTIONS: dict[str, str] = {
    "kafka-1:9092,kafka-2:9092": "{kafka}",
    "KAFKA_REPLICATION_FACTOR=3": "KAFKA_REPLICATION_FACTOR=1",  # there is one broker
    "cassandra-1,cassandra-2": "{cassandra}",
    "CASSANDRA_REPLICATION_FACTOR=3": "CASSANDRA_REPLICATION_FACTOR=1",
    "shrinkstream_2": "documents_2",  # beside other tests
    "s3://images": "file://{data}/storage",
    "https://images.example": "http://127.0.0.1:{api}",
    "127.0.0.1:8080": "127.0.0.1:{api}",
    "http.server 9010": "http.server {shop}",
    "127.0.0.1:9010": "127.0.0.1:{shop}",
    # Who types is slower than the shop is in opening.
    "infra/demo &": "infra/demo & until curl -sf 127.0.0.1:{shop} >/dev/null; do sleep 0.1; done",
    # Only `up` writes it; this system is started by hand, in the same shell.
    ". .shrinkstream/env": ":",
}

# Target of make → what it runs; test_lifecycle runs the first two, and whoever reads this the third.
MADE = {"demo": "shrinkstream demo", "up": "shrinkstream up", "test": "python -m pytest"}
MARKS = {"docker", "kubectl", "kafka"}
ELSEWHERE = {"docs/adding-a-projection.md"}  # tests/integration/projections/test_adding_a_projection.py
BESIDE_UP = {"docs/command-line.md", "docs/monitoring.md"}


def shell_blocks(name: str) -> list[Block]:
    return markdown.read(name).of_language("sh")


def is_of_make(block: Block) -> bool:
    return re.match(r"(?:\w+=\S+ )*make \w", block.text) is not None


def is_run(block: Block) -> bool:
    return not block.needs and not is_of_make(block)


def test_every_document_with_commands_is_run() -> None:
    with_commands = {
        str(path.relative_to(ROOT))
        for path in markdown.documents()
        if any(is_run(block) for block in markdown.read(path).of_language("sh"))
    }
    assert with_commands == set(SESSION) | BESIDE_UP | ELSEWHERE
    marks = {block.needs for path in markdown.documents() for block in markdown.read(path).of_language("sh")}
    assert marks <= MARKS | {"", "keeps-running"}


def test_every_make_target_exists_and_is_run() -> None:
    makefile = (ROOT / "Makefile").read_text()
    recipes = dict(re.findall(r"^([\w-]+):.*\n((?:\t.*\n)*)", makefile, re.MULTILINE))
    for path in markdown.documents():
        for target in re.findall(r"`make ([\w-]+)`", path.read_text()):
            assert target in recipes, f"{path}: make {target}"
    for block in shell_blocks("README.md"):
        if is_of_make(block):
            (target,) = re.findall(r"make ([\w-]+)", block.text)
            assert MADE[target] in recipes[target]


# --- the session of somebody who starts a system by hand and works with it

SESSION = (
    "docs/deployment.md",
    "README.md",
    "docs/settings.md",
    "docs/api.md",
    "docs/operations.md",
    "docs/webhooks.md",
)


def session() -> list[Block]:
    """The commands in the order in which somebody needs them: what stops the system comes last."""
    *starting, stopping = [block for block in shell_blocks(SESSION[0]) if is_run(block)]
    using = [block for name in SESSION[1:] for block in shell_blocks(name) if is_run(block)]
    return [*starting, *using, stopping]


def answers(text: str) -> list[Any]:
    """The JSON documents that a block printed, whatever stands between them."""
    found, at = [], 0
    while (at := text.find("{", at)) >= 0:
        answer, at = json.JSONDecoder().raw_decode(text, at)
        found.append(answer)
    return found


def shown_after(name: str, command: str) -> Any:
    """The JSON that a document shows after a block with this command."""
    blocks = iter(markdown.read(name).blocks)
    next(block for block in blocks if command in block.text)
    return json.loads(next(block.text for block in blocks if block.language == "json"))


class Printed:
    """What each block printed, to be found by something that stands in the block."""

    def __init__(self, blocks: list[Block], texts: list[str]) -> None:
        self._all = list(zip(blocks, texts, strict=True))

    def by(self, command: str) -> str:
        return next(text for block, text in self._all if command in block.text)

    def answers(self, command: str) -> list[Any]:
        return answers(self.by(command))


def test_documented_commands_do_what_they_say(
    kafka_address: str, cassandra_address: str, path_with_curl: str, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    folder = reader_folder(tmp_path / "checkout", data)
    shop, api = next(free_ports()), next(free_ports())
    plain = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    environment = {
        **plain,
        "PATH": path_with_curl,
        # Beside other systems on the same servers and ports, and with what `make up` is given in the README.
        "SHRINKSTREAM_TOPIC_PREFIX": "documents",
        "SHRINKSTREAM_CASSANDRA_KEYSPACE": "documents",
        "SHRINKSTREAM_PARTITIONS": "2",  # there is little to share
        "SHRINKSTREAM_DATA_DIR": str(data),
        "SHRINKSTREAM_PORT": str(api),
        "SHRINKSTREAM_URL": f"http://127.0.0.1:{api}",
        "SHRINKSTREAM_FETCH_ALLOW": f"127.0.0.1:{shop}",
    }
    places = {"kafka": kafka_address, "cassandra": cassandra_address, "data": data, "shop": shop, "api": api}
    texts = []
    blocks = session()
    for block in blocks:
        text = block.text
        for given, instead in SUBSTITUTIONS.items():
            text = text.replace(given, instead.format(**places))
        texts.append(text)
    printed = Printed(blocks, run_blocks(texts, folder=folder, environment=environment, timeout=400))

    # deployment.md
    assert printed.by("shrinkstream init").splitlines()[-1] == f"created {migrations()[-1][1]}"
    assert [answer["status"] for answer in printed.answers("/readyz")] == ["ready"]

    # README.md
    (accepted,) = printed.answers("tee answer.json")
    assert accepted.keys() == shown_after("README.md", "tee answer.json").keys()
    *_, status = printed.answers("/api/status/$id")
    shown = shown_after("README.md", "/api/status/$id")
    assert status.keys() == shown.keys()
    for name in ("status", "total", "succeeded", "failed", "inputBytes", "progress"):
        assert status[name] == shown[name]
    for result in (folder / "result.csv", folder / f"{status['requestId']}.csv"):
        rows = list(csv.DictReader(io.StringIO(result.read_text("utf-8-sig"))))
        assert [row["Product Name"] for row in rows] == ["Space suit", "Coffee cup"]
        assert [len(row["Output Image URLs"].split(",")) for row in rows] == [2, 1]

    # api.md
    assert printed.answers("validate_only") == [shown_after("docs/api.md", "validate_only")]
    first, second = printed.answers("Idempotency-Key")
    assert first["requestId"] == second["requestId"]
    requests, images, history = (page["items"] for page in printed.answers("?status=completed"))
    assert status["requestId"] in [request["requestId"] for request in requests]
    assert [image["format"] for image in images] == ["png", "jpeg", "png"]
    assert {"webp", "png"} <= {image["format"] for image in history}
    (missing,) = printed.answers("?status=failed")[-1]["items"]
    assert missing["reason"] == "fetch_http_404"
    (retried,) = printed.answers("/retry")
    assert retried["requestId"] != status["requestId"]
    assert printed.answers("/cancel")[0]["status"] in ("cancelled", 409)  # unless the retry was quicker
    (log,) = printed.answers("/log")
    assert (log["whole"], log["entries"][0]["text"]) == (True, "A CSV of 1 row with 2 images was accepted")
    assert "RequestRetried" in [entry["event"] for entry in log["entries"]]

    # operations.md
    assert printed.by("replay progress").splitlines() == [
        f"{name} rebuilt" for name in ("progress", "history", "output")
    ]
    assert printed.by("--verify") == "history matches the log\n"
    assert printed.by("dead-letters list") == ""
    assert printed.by("--partitions 12") == "created 12 partitions of documents.image-requests\n"
    parse_webhook_secrets(printed.by("whsec_").strip())
    created, restored = printed.by("KEYSPACE=shrinkstream_2").split("history rebuilt\n")
    assert [line.removeprefix("created ") for line in created.splitlines()] == [name for _, name, _ in migrations()]
    assert restored == "history matches the log\n"


# --- somebody with a second terminal, beside `up`


def test_commands_find_the_system_that_up_started(system: System, shop: Shop, tmp_path: Path) -> None:
    folder = reader_folder(tmp_path / "checkout", system.data_dir)
    plain = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    (enter,) = [block.text for block in shell_blocks("docs/operations.md") if "/env" in block.text]
    (look_at_logs,) = [block.text for block in shell_blocks("docs/monitoring.md")]
    (complete,) = [block.text for block in shell_blocks("docs/command-line.md")]
    request_id = upload(system.url, f"S. No.,Product Name,Input Image URLs\n1,Shoe,{shop.add('terminal.jpg')}\n")
    completed(system.url, request_id)
    blocks = [
        enter,
        f"id={request_id}\n.venv/bin/shrinkstream list --limit 1",
        ".venv/bin/shrinkstream init",
        look_at_logs,
        f"PATH=$PWD/.venv/bin:$PATH\n{complete}complete -p shrinkstream",
    ]
    _, listed, made, logged, completion = run_blocks(blocks, folder=folder, environment=plain)
    assert request_id in listed
    assert "created" not in made, "it is another system"
    assert json.loads(logged.splitlines()[0])["request_id"] == request_id
    assert "shrinkstream" in completion
