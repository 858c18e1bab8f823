"""The programs for Java and Go in docs/examples do what they say, with Kafka and the webhook of a running system.

A test is collected only where there is a compiler: the checkout brings none.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from infra.devserver.ports import free_ports
from tests.e2e.conftest import System
from tests.support.markdown import ROOT
from tests.support.published_clients import call, delivered, upload
from tests.support.shop import Shop

EXAMPLES = ROOT / "docs" / "examples"
HEADER = "S. No.,Product Name,Input Image URLs\n"
COMPILE_SECONDS = 600  # on a busy machine; Go compiles its standard library, too


def compiled_java(folder: Path) -> list[list[str]]:
    """The commands of the consumer and the receiver."""
    jars = os.pathsep.join(str(jar) for jar in (ROOT / ".venv" / "share" / "shrinkstream" / "jars").glob("*.jar"))
    sources = [str(EXAMPLES / "java" / f"{name}.java") for name in ("Consumer", "Receiver")]
    subprocess.run(["javac", "-d", str(folder), "-cp", jars, *sources], check=True, timeout=COMPILE_SECONDS)
    return [["java", "-cp", f"{folder}{os.pathsep}{jars}", name] for name in ("Consumer", "Receiver")]


def compiled_go(folder: Path) -> list[list[str]]:
    """The commands of the consumer and the receiver. Modules stay in the environment of the checkout.

    Skips the test where there are no modules: without a module proxy, or with a Go older than they ask for.
    """
    caches = {"GOCACHE": str(ROOT / ".venv" / "go" / "build"), "GOMODCACHE": str(ROOT / ".venv" / "go" / "modules")}
    flags = {"GOTOOLCHAIN": "local", "GOFLAGS": "-modcacherw -buildvcs=false", "CGO_ENABLED": "0"}
    environment = {**os.environ, **caches, **flags}

    def go(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = ["go", *arguments]
        return subprocess.run(
            command, cwd=EXAMPLES / "go", env=environment, capture_output=True, text=True, timeout=COMPILE_SECONDS
        )

    modules = go("mod", "download")
    assert "checksum mismatch" not in modules.stderr
    if modules.returncode:
        pytest.skip(f"the Go modules of docs/examples can't be had: {modules.stderr.strip()}")
    # Not optimised, which takes half as long.
    built = go("build", "-trimpath", "-gcflags=all=-N -l", "-ldflags=-w", "-o", str(folder), "./...")
    assert built.returncode == 0, built.stderr
    return [[str(folder / name)] for name in ("consumer", "receiver")]


@contextmanager
def running(command: Sequence[str], **variables: str) -> Iterator[Iterator[str]]:
    """The lines that a program prints."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **variables})
    try:
        assert process.stdout is not None
        yield iter(process.stdout)
    finally:
        process.kill()
        process.communicate()


def check_programs(commands: list[list[str]], system: System, shop: Shop, kafka_address: str) -> None:
    """The consumer prints a completion; the receiver takes genuine messages only."""
    consumer, receiver = commands
    request_id = upload(system.url, f"{HEADER}1,Shoe,{shop.add('compiled.jpg')}\n", webhookUrl=f"{shop.url}/webhook/c")
    status = delivered(system.url, request_id)
    with running(consumer, KAFKA_BROKERS=kafka_address, TOPIC=f"{system.name}.requests") as lines:
        heard = next(line for line in lines if request_id in line)
        assert heard.split()[1:] == [request_id, status["outputCsvUrl"]]

    (sent,) = shop.received(request_id)
    port = next(free_ports())
    with running(receiver, PORT=str(port), WEBHOOK_SECRET=shop.secret) as lines:
        assert next(lines) == "listening\n"
        headers = {name: value for name, value in sent.headers.items() if name != "host"}
        url = f"http://127.0.0.1:{port}"
        assert call(url, "POST", "/hook", sent.body.replace(b"1", b"2"), headers).status == 401
        late = {**headers, "webhook-timestamp": "1000000000"}
        assert call(url, "POST", "/hook", sent.body, late).status == 401
        assert call(url, "POST", "/hook", sent.body, {"content-type": "application/json"}).status == 401
        assert call(url, "POST", "/hook", sent.body, headers).status == 204
        printed = next(lines)
        assert printed.startswith(sent.headers["webhook-id"])
        assert "request.completed" in printed
        assert status["outputCsvUrl"] in printed


if shutil.which("javac"):

    def test_java_programs_hear_of_completion(system: System, shop: Shop, kafka_address: str, tmp_path: Path) -> None:
        check_programs(compiled_java(tmp_path), system, shop, kafka_address)


if shutil.which("go"):

    def test_go_programs_hear_of_completion(system: System, shop: Shop, kafka_address: str, tmp_path: Path) -> None:
        check_programs(compiled_go(tmp_path), system, shop, kafka_address)
