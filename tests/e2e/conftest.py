"""The whole system as a user runs it: `shrinkstream up` as a process, a shop's web server, a webhook receiver."""

import os
import queue
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support import curl
from tests.support.console_script import shrinkstream
from tests.support.processes import leashed, running_api
from tests.support.shop import Shop

READY_SECONDS = 240
STOP_SECONDS = 120


class System:
    """A running `shrinkstream up` and its address; ``name`` is that of its keyspace and the prefix of its topics."""

    def __init__(self, url: str, data_dir: Path, process: "subprocess.Popen[str]", environment: dict[str, str]) -> None:
        self.name = environment.get("SHRINKSTREAM_TOPIC_PREFIX", "shrinkstream")
        self.url = url
        self.data_dir = data_dir
        self.process = process
        self.environment = environment

    def run(
        self, *arguments: str, timeout: float = 180, typed: str = "", **variables: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run a `shrinkstream` command as a user of this system would."""
        return shrinkstream(*arguments, environment={**self.environment, **variables}, timeout=timeout, typed=typed)


def _pass_on(lines: Iterable[str], to: Callable[[str], None]) -> None:
    for line in lines:
        to(line)


def start_system(environment: dict[str, str], *arguments: str) -> "tuple[subprocess.Popen[str], str]":
    """Start `up` and wait for its ready line; returns the process and the address."""
    process = subprocess.Popen(
        [*leashed(), "-m", "infra.cli", "up", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    lines: queue.Queue[str] = queue.Queue()
    errors: list[str] = []
    # Both pipes are read to their end: a full one would hold the system up.
    for target, pipe in ((lines.put_nowait, process.stdout), (errors.append, process.stderr)):
        threading.Thread(target=_pass_on, args=(pipe, target), daemon=True).start()
    try:
        first = lines.get(timeout=READY_SECONDS)
    except queue.Empty:
        process.kill()
        raise AssertionError("`up` did not become ready: " + "".join(errors[-20:])) from None
    assert first.startswith("ready http://127.0.0.1:"), first + "".join(errors[-20:])
    return process, first.split()[1]


def stop_system(process: "subprocess.Popen[str]") -> int:
    """SIGTERM, as Ctrl-C or a service manager does it; returns the exit code."""
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(STOP_SECONDS)
    finally:
        process.kill()


@pytest.fixture(scope="session")
def shop() -> Iterator[Shop]:
    with Shop() as running:
        yield running


@pytest.fixture(autouse=True)
def _slow_as_ever(shop: Shop) -> Iterator[None]:
    """A test may make `/slow` quicker for itself."""
    seconds = shop.slow_seconds
    yield
    shop.slow_seconds = seconds


@pytest.fixture(scope="session")
def system(
    kafka_address: str, cassandra_address: str, shop: Shop, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[System]:
    data_dir = tmp_path_factory.mktemp("system")
    name = f"system_{uuid4().hex[:8]}"  # each worker of the tests has a system on the same servers
    environment = {
        **os.environ,
        "SHRINKSTREAM_KAFKA_BROKERS": kafka_address,
        "SHRINKSTREAM_CASSANDRA_HOSTS": cassandra_address,
        "SHRINKSTREAM_TOPIC_PREFIX": name,
        "SHRINKSTREAM_CASSANDRA_KEYSPACE": name,
        "SHRINKSTREAM_DATA_DIR": str(data_dir),
        "SHRINKSTREAM_FETCH_ALLOW": shop.address,
        "SHRINKSTREAM_FETCH_TIMEOUT": "5",
        "SHRINKSTREAM_WEBHOOK_SECRET": shop.secret,
    }
    process, url = start_system(environment, "--port", "0")
    yield System(url, data_dir, process, {**environment, "SHRINKSTREAM_URL": url})
    assert stop_system(process) == 0


@pytest.fixture(scope="session")
def guarded_url(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A second API of the same system, which requires a key; the workers belong to both."""
    environment = {
        **system.environment,
        "SHRINKSTREAM_API_KEYS": "shop:sesame,anna:key-a,bert:key-b",
        # Files of its own beside the other API, but the images where the workers put them.
        "SHRINKSTREAM_STORAGE_URL": (system.data_dir / "storage").as_uri(),
        "SHRINKSTREAM_DATA_DIR": str(tmp_path_factory.mktemp("keyed")),
    }
    with running_api(environment) as (_, url):
        yield url


@pytest.fixture(scope="session")
def path_with_curl(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A ``PATH`` with a curl: the machine's, or else that of the tests."""
    path = os.environ["PATH"]
    return path if shutil.which("curl") else f"{curl.install(tmp_path_factory.mktemp('curl')).parent}:{path}"
