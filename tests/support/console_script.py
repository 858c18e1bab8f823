"""`shrinkstream` as a user starts it: the installed console script, in pipes or on a terminal."""

import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

PROGRAM = Path(sys.executable).with_name("shrinkstream")
SECONDS = 180


def shrinkstream(
    *arguments: str,
    environment: Mapping[str, str],
    timeout: float = SECONDS,
    typed: str = "",
    folder: Path | None = None,
) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end, in pipes; ``typed`` is its standard input, ``folder`` where it runs."""
    return subprocess.run(
        [PROGRAM, *arguments],
        env=dict(environment),
        cwd=folder,
        capture_output=True,
        text=True,
        input=typed,
        timeout=timeout,
        check=False,
    )


class Running:
    """A command that is running, and what it has said so far; ``terminal``: standard error is one."""

    def __init__(self, *arguments: str, environment: Mapping[str, str], terminal: bool = False) -> None:
        self._said: dict[str, bytes] = {"out": b"", "err": b""}
        self._terminal: int | None = None
        other_end = subprocess.PIPE
        if terminal:
            self._terminal, other_end = pty.openpty()
        self.process = subprocess.Popen(
            [PROGRAM, *arguments], env=dict(environment), stdout=subprocess.PIPE, stderr=other_end
        )
        assert self.process.stdout is not None
        if self._terminal is not None:
            os.close(other_end)
        errors = self._terminal if self._terminal is not None else self._fileno_of_errors()
        self._readers = [
            threading.Thread(target=self._read, args=arguments_of_reader, daemon=True)
            for arguments_of_reader in (("out", self.process.stdout.fileno()), ("err", errors))
        ]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait(SECONDS)
        for reader in self._readers:
            reader.join(SECONDS)
        if self._terminal is not None:
            os.close(self._terminal)

    def _fileno_of_errors(self) -> int:
        assert self.process.stderr is not None
        return self.process.stderr.fileno()

    def _read(self, name: str, pipe: int) -> None:
        while True:
            try:
                piece = os.read(pipe, 65536)
            except OSError:  # how a terminal says that nobody has its other end any more
                return
            if not piece:
                return
            self._said[name] += piece

    @property
    def out(self) -> str:
        return self._said["out"].decode()

    @property
    def err(self) -> str:
        return self._said["err"].decode()

    def wait_until(self, question: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not question():
            assert self.process.poll() is None, f"it ended: {self.out}{self.err}"
            assert time.monotonic() < deadline, self.out + self.err
            time.sleep(0.02)

    def end(self) -> int:
        """Wait for its end and for all that it said; returns the exit code."""
        code = self.process.wait(SECONDS)
        for reader in self._readers:
            reader.join(SECONDS)
        return code
