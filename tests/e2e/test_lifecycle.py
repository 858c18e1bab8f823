"""`up` and `demo` from nothing: what they start, they stop; what was begun, goes on."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from infra.cli.system import TARGETS, WORKER_PORTS
from tests.e2e.conftest import start_system, stop_system
from tests.support.console_script import shrinkstream
from tests.support.published_clients import call, completed, upload
from tests.support.scrape import addresses
from tests.support.shop import Shop
from tests.support.waiting import wait_until

HEADER = "S. No.,Product Name,Input Image URLs\n"


def environment(data_dir: Path, shop: Shop) -> dict[str, str]:
    """A machine without a Kafka or Cassandra of its own."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("SHRINKSTREAM_")}
    return {
        **plain,
        "SHRINKSTREAM_DATA_DIR": str(data_dir),
        "SHRINKSTREAM_FETCH_ALLOW": shop.address,
        "SHRINKSTREAM_WEBHOOK_SECRET": shop.secret,
        "AWS_SECRET_ACCESS_KEY": "of-the-bucket",
    }


def family(pid: int) -> list[psutil.Process]:
    children: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    return children


def gone(processes: list[psutil.Process], timeout: float = 60) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=timeout)
    return not alive


@dataclass(frozen=True)
class Resumed:
    """A system with a Kafka and a Cassandra of its own that was killed over a request, and started again."""

    url: str
    data_dir: Path
    done: str
    begun: str

    def server(self, main_class: str) -> psutil.Process:
        """The Java process that runs just now."""
        (found,) = [process for process in psutil.process_iter() if is_server_of(process, self.data_dir, main_class)]
        return found


def is_server_of(process: psutil.Process, data_dir: Path, main_class: str) -> bool:
    try:
        command = process.cmdline()
    except psutil.Error:
        return False
    return (
        bool(command) and command[0].endswith("java") and main_class in command and str(data_dir) in " ".join(command)
    )


@pytest.fixture(scope="module")
def resumed(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Resumed]:
    data_dir = tmp_path_factory.mktemp("own") / "data"
    variables = environment(data_dir, shop)
    process, url = start_system(variables, "--port", "0")
    started = family(process.pid)
    assert {"java"} <= {child.name() for child in started}
    done = upload(url, f"{HEADER}1,Shoe,{shop.add('before.jpg')}\n")
    completed(url, done)
    rows = "".join(f"{number},Sock {number},{shop.add('during.jpg')}\n" for number in range(300))
    begun = upload(url, HEADER + rows)
    process.kill()
    process.wait(60)
    assert gone(started), "processes outlived `up`"

    process, url = start_system(variables, "--port", "0")
    yield Resumed(url, data_dir, done, begun)
    started = family(process.pid)
    assert stop_system(process) == 0
    assert gone(started), "processes outlived `up`"


def test_second_up_resumes_killed_one(resumed: Resumed) -> None:
    assert call(resumed.url, "GET", f"/api/status/{resumed.done}").json["status"] == "completed"
    status = completed(resumed.url, resumed.begun)
    assert (status["succeeded"], status["failed"]) == (300, 0)


def test_up_keeps_its_files_from_other_users(resumed: Resumed) -> None:
    assert resumed.data_dir.stat().st_mode & 0o077 == 0
    folders, files = (
        ("kafka", "cassandra", "faust", "storage", "spool", "logs"),
        ("env", "password", TARGETS, WORKER_PORTS),
    )
    for name in (*folders, *files):
        assert (resumed.data_dir / name).stat().st_mode & 0o077 == 0, name


def test_each_process_has_only_the_secrets_of_its_role(resumed: Resumed) -> None:
    secrets = ("KAFKA_SASL_PASSWORD", "CASSANDRA_PASSWORD", "WEBHOOK_SECRET")
    given: dict[str, set[str]] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            variables = process.environ()
            if variables.get("SHRINKSTREAM_DATA_DIR") == str(resumed.data_dir):
                role = (process.cmdline()[-1:] or [""])[0]
                given.setdefault(role, set()).update(name for name in secrets if f"SHRINKSTREAM_{name}" in variables)
                given[role].update({"AWS"} & {name.partition("_")[0] for name in variables})
    assert given["api"] == {"KAFKA_SASL_PASSWORD", "CASSANDRA_PASSWORD", "AWS"}
    assert given["compress"] == {"KAFKA_SASL_PASSWORD", "AWS"}
    assert given["progress"] == {"KAFKA_SASL_PASSWORD"}
    assert given["projections"] == {"KAFKA_SASL_PASSWORD", "CASSANDRA_PASSWORD", "WEBHOOK_SECRET", "AWS"}


NEEDS = {
    "api": {"kafka", "progress view", "cassandra"},
    "compress": {"kafka"},
    "progress": {"kafka"},
    "projections": {"kafka", "cassandra"},
}
NOTICED_SECONDS = 180.0


def failing_checks(data_dir: Path) -> dict[str, set[str]]:
    """Probe every process: role → the checks that fail in it. Each answers while the servers hang."""
    failing = {}
    for role, address in addresses(data_dir).values():
        url = f"http://{address}"
        assert call(url, "GET", "/healthz").json == {"status": "ok"}
        answer = call(url, "GET", "/readyz")
        failing[role] = {name for name, outcome in answer.json["checks"].items() if outcome != "ok"}
        assert answer.status == (503 if failing[role] else 200)
        assert answer.json["status"] == ("not ready" if failing[role] else "ready")
    return failing


def wait_until_noticed(data_dir: Path) -> None:
    """Return when every process has said of each server that it needs that it is away."""
    noticed: dict[str, set[str]] = {role: set() for role in NEEDS}

    def is_noticed() -> bool:
        for role, failing in failing_checks(data_dir).items():
            noticed[role] |= failing
        return all(noticed[role] >= needed for role, needed in NEEDS.items())

    wait_until(is_noticed, f"failing checks {NEEDS}", NOTICED_SECONDS)


def wait_until_ready(data_dir: Path) -> None:
    wait_until(lambda: not any(failing_checks(data_dir).values()), "ready processes", NOTICED_SECONDS)


def test_probes_report_hanging_and_dead_servers(resumed: Resumed) -> None:
    completed(resumed.url, resumed.begun)
    wait_until_ready(resumed.data_dir)
    servers = [resumed.server("kafka.Kafka"), resumed.server("org.apache.cassandra.service.CassandraDaemon")]
    try:
        for server in servers:
            server.suspend()
        wait_until_noticed(resumed.data_dir)
        wait_until(lambda: failing_checks(resumed.data_dir) == NEEDS, f"{NEEDS} and nothing else", NOTICED_SECONDS)
    finally:
        for server in servers:
            server.resume()
    wait_until_ready(resumed.data_dir)
    for server in servers:
        server.kill()  # `up` starts them again
    wait_until_noticed(resumed.data_dir)
    wait_until_ready(resumed.data_dir)


def test_taken_port_is_an_error_of_one_line(tmp_path: Path, shop: Shop) -> None:
    port = shop.address.rpartition(":")[2]
    result = shrinkstream("up", "--port", port, "--data-dir", str(tmp_path), environment=environment(tmp_path, shop))
    assert result.returncode != 0
    assert len(result.stderr.splitlines()) == 1
    assert port in result.stderr


def test_demo_prints_results_and_leaves_nothing(tmp_path: Path) -> None:
    temporary, folder = tmp_path / "temporary", tmp_path / "folder"
    temporary.mkdir()
    folder.mkdir()
    plain = {name: value for name, value in os.environ.items() if not name.startswith("SHRINKSTREAM_")}
    process = shrinkstream("demo", environment={**plain, "TMPDIR": str(temporary)}, timeout=300, folder=folder)
    assert process.returncode == 0, process.stderr
    assert "7 of 7 images compressed, 0 failed" in process.stdout
    assert "MB saved" in process.stdout
    assert re.search(r"webhook msg_[0-9a-f]{32} received: request.completed, signed v1,", process.stdout)
    assert list(temporary.iterdir()) == []
    assert list(folder.iterdir()) == []
