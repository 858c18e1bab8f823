"""`up` and `demo` from nothing: what they start, they stop; what was begun, goes on."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import System, start_system, stop_system
from tests.e2e.published_clients import call, completed, upload
from tests.e2e.shop import Shop

HEADER = "S. No.,Product Name,Input Image URLs\n"


def environment(data_dir: Path, shop: Shop) -> dict[str, str]:
    """A machine without a Kafka or Cassandra of its own."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("SHRINKSTREAM_")}
    return {**plain, "SHRINKSTREAM_DATA_DIR": str(data_dir), "SHRINKSTREAM_FETCH_ALLOW": shop.address}


def family(pid: int) -> list[psutil.Process]:
    children: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    return children


def gone(processes: list[psutil.Process], timeout: float = 15) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=timeout)
    return not alive


def test_a_second_up_goes_on_where_a_killed_one_was(tmp_path: Path, shop: Shop) -> None:
    variables = environment(tmp_path / "data", shop)
    process, url = start_system(variables, "--port", "0")
    started = family(process.pid)
    assert {"java"} <= {child.name() for child in started}
    done = upload(url, f"{HEADER}1,Shoe,{shop.add('before.jpg')}\n")
    completed(url, done)
    rows = "".join(f"{number},Sock {number},{shop.add('during.jpg')}\n" for number in range(300))
    begun = upload(url, HEADER + rows)
    process.kill()
    process.wait(10)
    assert gone(started), "processes outlived `up`"

    process, url = start_system(variables, "--port", "0")
    started = family(process.pid)
    assert call(url, "GET", f"/api/status/{done}").json["status"] == "completed"
    status = completed(url, begun, timeout=90)
    assert (status["succeeded"], status["failed"]) == (300, 0)
    assert stop_system(process) == 0
    assert gone(started), "processes outlived `up`"


def test_a_port_that_is_taken_is_one_clear_line(tmp_path: Path, shop: Shop) -> None:
    port = shop.address.rpartition(":")[2]
    result = subprocess.run(
        [sys.executable, "-m", "infra.cli", "up", "--port", port, "--data-dir", str(tmp_path)],
        env=environment(tmp_path, shop),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode != 0
    assert len(result.stderr.splitlines()) == 1
    assert port in result.stderr


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        (["api"], "kafka"),
        (["api"], "cassandra"),
        (["init"], "kafka"),
        (["init"], "cassandra"),
        (["worker", "compress"], "kafka"),
        (["worker", "progress"], "kafka"),
        (["worker", "projections"], "kafka"),
        (["worker", "projections"], "cassandra"),
    ],
)
def test_servers_that_are_not_there_are_one_clear_line(
    system: System, tmp_path: Path, command: list[str], missing: str, kafka_address: str, cassandra_address: str
) -> None:
    addresses = {"kafka": kafka_address, "cassandra": cassandra_address, missing: "127.0.0.1:1"}
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-m", "infra.cli", *command],
        env={
            **os.environ,
            "SHRINKSTREAM_DATA_DIR": str(tmp_path),
            "SHRINKSTREAM_KAFKA_BROKERS": addresses["kafka"],
            "SHRINKSTREAM_CASSANDRA_HOSTS": addresses["cassandra"],
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode != 0
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert re.search(f"{missing}.*127.0.0.1:1", result.stderr, re.IGNORECASE), result.stderr
    assert time.monotonic() - started < 45


def test_the_demo_shows_what_came_out_and_leaves_nothing_behind(tmp_path: Path) -> None:
    before = set(Path("/tmp").glob("shrinkstream-demo-*"))
    plain = {name: value for name, value in os.environ.items() if not name.startswith("SHRINKSTREAM_")}
    process = subprocess.run(
        [sys.executable, "-m", "infra.cli", "demo"],
        env=plain,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        cwd=tmp_path,
    )
    assert process.returncode == 0, process.stderr
    assert "7 of 7 images compressed, 0 failed" in process.stdout
    assert "MB saved" in process.stdout
    assert re.search(r"webhook msg_[0-9a-f]{32} arrived: request.completed, signed v1,", process.stdout)
    assert set(Path("/tmp").glob("shrinkstream-demo-*")) == before
    assert list(tmp_path.iterdir()) == []
