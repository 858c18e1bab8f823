"""A worker as a process, which a test may kill."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from infra.settings import PREFIX, Settings, environment_of

STOP_SECONDS = 120


class WorkerProcess:
    """``shrinkstream worker ROLE`` with some settings; its log is in ``data_dir``.

    ``prepare``: Python statements that shorten a constant before the worker runs.
    """

    role: str

    def __init__(self, settings: Settings, name: str = "worker", prepare: str = "pass") -> None:
        self._settings = settings
        self._program = f"{prepare}\nfrom infra.cli.__main__ import run\nrun()"
        self._log = settings.data_dir / f"{name}.log"
        self.process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        with Path(self._log).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-c", self._program, "worker", self.role],
                env={**environment, **environment_of(self._settings)},
                stdout=log,
                stderr=log,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def kill(self) -> None:
        """What kill -9 does."""
        self.process.kill()
        self.process.wait(STOP_SECONDS)
        print(self.log[-20_000:])  # pytest shows it if the test fails

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_SECONDS)
        finally:
            self.process.kill()

    def start_again(self) -> None:
        assert self.process.poll() is not None
        self.process = self._start()


class ProjectionsWorker(WorkerProcess):
    role = "projections"


class CompressWorker(WorkerProcess):
    role = "compress"
