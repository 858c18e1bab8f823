"""A system that is measured: its requests, and the processor, memory and disk that they use, by role or topic."""

import os
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from infra.devserver.ports import LOOPBACK, free_ports
from tests.support.processes import leashed
from tests.support.published_clients import call, upload

ROLES = {
    "decoders.process": "decoders",
    "worker compress": "compress",
    "worker progress": "progress",
    "worker projections": "projections",
    "infra.cli api": "api",
    "kafka.Kafka": "Kafka",
    "CassandraDaemon": "Cassandra",
}
COMPRESSING = ("compress", "decoders")
SAMPLE_SECONDS = 1.0  # a sample reads all processes of the machine, at the expense of the measured system
READY_SECONDS = 60.0


def complete(url: str, csv: str, timeout: float) -> tuple[float, dict[str, Any]]:
    """Seconds from the first byte of the upload to `completed`, and the status then."""
    started = time.perf_counter()
    request_id = upload(url, csv)
    while True:
        status = call(url, "GET", f"/api/status/{request_id}").json
        seconds = time.perf_counter() - started
        if status["status"] == "completed":
            assert status["failed"] == 0, status
            return seconds, status
        if seconds > timeout:
            raise SystemExit(f"not completed within {timeout:g} s: {status}")
        time.sleep(0.05)


@contextmanager
def running_api(environment: Mapping[str, str]) -> Iterator[tuple[psutil.Process, str]]:
    """An API process of its own with these settings, ready; yields its address, too."""
    port = next(free_ports(LOOPBACK))
    url = f"http://{LOOPBACK}:{port}"
    command = [*leashed(), "-m", "infra.cli", "api"]
    own = {"SHRINKSTREAM_PORT": str(port), "SHRINKSTREAM_LOG_LEVEL": "WARNING"}
    process = subprocess.Popen(command, env={**os.environ, **environment, **own})
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not _is_ready(url):
            if time.monotonic() > deadline or process.poll() is not None:
                raise SystemExit(f"the API is not ready after {READY_SECONDS:g} s")
            time.sleep(0.1)
        yield psutil.Process(process.pid), url
    finally:
        process.terminate()
        process.wait(30)


def _is_ready(url: str) -> bool:
    try:
        return call(url, "GET", "/readyz").status == 200
    except OSError:
        return False


def environment_of_role(root: int, role: str) -> dict[str, str]:
    """The environment of the process of that role below ``root``."""
    return next(process.environ() for found, process in _members(root) if found == role)


def cpu_seconds(root: int) -> Counter[str]:
    """User and system time so far of the process ``root`` and all below it, by role."""
    used: Counter[str] = Counter()
    for role, process in _members(root):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            used[role] += times.user + times.system
    return used


def seconds_of(process: psutil.Process) -> float:
    """User and system time of one process so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def resident_bytes(root: int) -> Counter[str]:
    """Memory of the process ``root`` and all below it, by role; pages that some share are counted for each."""
    resident: Counter[str] = Counter()
    for role, process in _members(root):
        with suppress(psutil.NoSuchProcess):
            resident[role] += process.memory_info().rss
    return resident


@contextmanager
def watched_memory(root: int) -> Iterator[list[Counter[str]]]:
    """Yields a list that fills with the results of `resident_bytes`, as long as the block lasts."""
    samples = [resident_bytes(root)]
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(SAMPLE_SECONDS):
            with suppress(psutil.NoSuchProcess):
                samples.append(resident_bytes(root))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield samples
    finally:
        stop.set()
        watcher.join()


def kafka_bytes(data_dir: Path) -> Counter[str]:
    """Bytes on the disk of embedded Kafka, by topic without its prefix."""
    found: Counter[str] = Counter()
    for file in (data_dir / "kafka" / "data").glob("shrinkstream*/*.log"):
        topic = file.parent.name.rpartition("-")[0].partition("shrinkstream")[2][1:]
        found[topic] += file.stat().st_size
    return found


def _members(root: int) -> Iterator[tuple[str, psutil.Process]]:
    top = psutil.Process(root)
    for process in (top, *top.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            command = " ".join(process.cmdline())
            yield next((role for mark, role in ROLES.items() if mark in command), "up"), process
