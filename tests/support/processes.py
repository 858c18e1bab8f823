"""Processes that tests start."""

import http.client
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import psutil

from infra.devserver.ports import free_ports
from infra.devserver.process import LEASH
from tests.support.waiting import wait_until

START_SECONDS = 180.0
STOP_SECONDS = 60.0
END_SECONDS = 120.0


def leashed() -> list[str]:
    """The command of a Python that ends with this process, also when a test run is killed; its arguments follow."""
    return [sys.executable, "-I", "-S", str(LEASH), str(os.getpid()), sys.executable]


@contextmanager
def running_api(environment: Mapping[str, str]) -> Iterator["tuple[subprocess.Popen[bytes], str]"]:
    """An API with these settings on a free port, as a process that ends with the block; yields its URL, too."""
    port = next(free_ports())
    process = subprocess.Popen(
        [*leashed(), "-m", "infra.cli", "api"], env={**environment, "SHRINKSTREAM_PORT": str(port)}
    )

    def answers() -> bool:
        assert process.poll() is None, "the API ended"
        return is_healthy(port)

    try:
        wait_until(answers, "the API answers", START_SECONDS)
        yield process, f"http://127.0.0.1:{port}"
    finally:
        end(process)


def is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def end(process: "subprocess.Popen[bytes]") -> None:
    """SIGTERM; SIGKILL if that does not end it."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    finally:
        process.kill()


def is_gone(pid: int) -> bool:
    """Whether it ends in time; a zombie that init hasn't collected yet has ended, too."""
    deadline = time.monotonic() + END_SECONDS
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False
