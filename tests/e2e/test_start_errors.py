"""What can't be started says why in one line."""

import re
from pathlib import Path

import pytest

from tests.e2e.conftest import System
from tests.support.console_script import shrinkstream


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
def test_missing_servers_are_one_clear_line(
    system: System, tmp_path: Path, command: list[str], missing: str, kafka_address: str, cassandra_address: str
) -> None:
    addresses = {"kafka": kafka_address, "cassandra": cassandra_address, missing: "127.0.0.1:1"}
    result = system.run(
        *command,
        SHRINKSTREAM_DATA_DIR=str(tmp_path),
        SHRINKSTREAM_KAFKA_BROKERS=addresses["kafka"],
        SHRINKSTREAM_CASSANDRA_HOSTS=addresses["cassandra"],
    )
    assert result.returncode == (69 if command[0] == "worker" else 1)
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert re.search(f"{missing}.*127.0.0.1:1", result.stderr, re.IGNORECASE), result.stderr


@pytest.mark.parametrize(
    ("command", "variables", "status", "says"),
    [
        ("worker compress", {"STORAGE_URL": "file:///proc/none"}, 69, "file:///proc/none"),
        (
            "worker progress",
            {"TOPIC_PREFIX": "none"},
            69,
            "missing on .*none.requests.* `shrinkstream init`",
        ),
        ("worker progress", {"PARTITIONS": "3"}, 69, "SHRINKSTREAM_PARTITIONS is 3"),
        ("worker projections", {"CASSANDRA_KEYSPACE": "none_here"}, 69, "none_here"),
        ("worker progress", {"WORKER_PORT": "TAKEN"}, 69, "can't be listened on"),
        ("worker progress", {"PARTITIONS": "many"}, 1, "SHRINKSTREAM_PARTITIONS"),
        ("worker progress", {"PARTITION": "8"}, 1, "SHRINKSTREAM_PARTITION"),
        ("api", {"STORAGE_URL": "file:///proc/none"}, 1, "file:///proc/none"),
        ("api", {"TOPIC_PREFIX": "none"}, 1, "missing on .*none.requests.* `shrinkstream init`"),
        ("worker", {}, 2, "Usage"),
    ],
)
def test_each_start_error_has_its_exit_code(
    system: System, tmp_path: Path, command: str, variables: dict[str, str], status: int, says: str
) -> None:
    """69: a dependency of a worker is missing, which a supervisor may try again."""
    taken = system.url.rpartition(":")[2]
    own = {f"SHRINKSTREAM_{name}": taken if value == "TAKEN" else value for name, value in variables.items()}
    environment = {**system.environment, "SHRINKSTREAM_DATA_DIR": str(tmp_path), **own}
    result = shrinkstream(*command.split(), environment=environment)
    assert result.returncode == status, result.stderr
    assert re.search(says, result.stderr), result.stderr
    assert "Traceback" not in result.stderr


def test_unusable_settings_of_a_process_are_reported_at_once(system: System, tmp_path: Path) -> None:
    result = system.run("up", "--port", "0", SHRINKSTREAM_DATA_DIR=str(tmp_path), SHRINKSTREAM_HOST="0.0.0.0")
    assert result.returncode == 1
    *before, line = result.stderr.splitlines()
    assert all("process ended, restarting" in said for said in before), result.stderr
    assert "SHRINKSTREAM_HOST=0.0.0.0 is open to the network: set SHRINKSTREAM_API_KEYS" in line
