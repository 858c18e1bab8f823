"""A child process with a log file that never outlives its parent."""

import asyncio
import contextlib
import logging
import os
import re
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from infra.errors import ExplainedError

MAX_LOG_BYTES = 10 * 1024 * 1024
KILL_SECONDS = 10.0
logger = logging.getLogger(__name__)

LEASH = Path(__file__).with_name("leash.py")

# A line with an error: of a log, the head of a Java or Python exception, a usage error.
_ERROR_LINE = re.compile(
    r"\b(ERROR|FATAL|CRITICAL)\b"
    r'|"level": ?"(error|critical)"'
    r"|^(Caused by: |Exception |Error: |error: |[\w.]*(Error|Exception|Failure)(:|$))"
    r"|^cannot |^shrinkstream: "
)
_TAIL_BYTES = 64 * 1024
_MAX_ERROR_LINES = 3
_LOG_CHECK_SECONDS = 30.0


class ProcessError(ExplainedError):
    """The process didn't start, or crashed; the message has its last log lines and the log's path, in one line."""


def rotate(log_path: Path) -> bool:
    """Move the content of a log over 10 MiB to ``….1``; returns whether it did. Copies: the writer has it open."""
    if log_path.stat().st_size <= MAX_LOG_BYTES:
        return False
    shutil.copyfile(log_path, log_path.with_name(log_path.name + ".1"))
    os.truncate(log_path, 0)
    return True


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
        os.killpg(pid, signal.SIGKILL)


class ChildProcess:
    """A child process in its own session.

    A Ctrl-C in the terminal therefore reaches only the parent, which then stops its
    children in order. When the parent dies, the child is killed (see :mod:`infra.devserver.leash`). On Linux this
    is tied to the *thread* that called :meth:`start`: start children from a thread that outlives them.
    Remaining processes of its session are killed when the child ends.

    ``env`` is its environment, None that of this process; ``pass_fds`` are the file descriptors that it inherits.
    Standard output and standard error are appended to ``log_path``; beyond 10 MiB its content moves to ``….1``.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        log_path: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        pass_fds: Sequence[int] = (),
        umask: int = -1,
    ) -> None:
        self.name = name
        self.argv = list(argv)
        self.log_path = log_path
        self._env = env
        self._cwd = cwd
        self._pass_fds = pass_fds
        self._umask = umask
        self._process: asyncio.subprocess.Process | None = None
        self._log_start = 0
        self._attend_task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """Process id, also of the session and process group; RuntimeError before :meth:`start`."""
        return self._started.pid

    @property
    def returncode(self) -> int | None:
        """Exit status, the negative signal number if a signal ended it; None while it runs or before its start."""
        return self._process.returncode if self._process else None

    @property
    def _started(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._process

    async def start(self) -> None:
        """Start it; returns at once, without waiting for success. May be called again after its end."""
        if self._process is not None and self._process.returncode is None:
            raise RuntimeError(f"{self.name} is running already")
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            await asyncio.to_thread(rotate, self.log_path)
            self._log_start = self.log_path.stat().st_size
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(LEASH), str(os.getpid())),
                *self.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._cwd,
                env=self._env,
                umask=self._umask,
                pass_fds=self._pass_fds,
                start_new_session=True,
            )
        self._attend_task = asyncio.create_task(self._attend(self._process))

    async def wait(self) -> int:
        """Wait for its end; returns the exit status."""
        return await self._started.wait()

    async def stop(self, grace_seconds: float) -> None:
        """Stop it: SIGTERM, after ``grace_seconds`` SIGKILL. Safe to call at any time."""
        if self._process is None or self._attend_task is None:
            return
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_seconds):
                    await self._process.wait()
        if self._process.returncode is None:
            _kill_group(self._process.pid)
        async with asyncio.timeout(KILL_SECONDS):
            await asyncio.shield(self._attend_task)

    async def _attend(self, process: asyncio.subprocess.Process) -> None:
        """Rotate the log while it runs; after its end kill the remaining processes of its group."""
        while process.returncode is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOG_CHECK_SECONDS):
                    await process.wait()
            try:
                if await asyncio.to_thread(rotate, self.log_path):
                    self._log_start = 0
            except OSError as error:
                logger.warning("cannot rotate %s: %s", self.log_path, error)
        # At once: later, the id of an empty group might be reused.
        _kill_group(process.pid)

    def exit_summary(self) -> str:
        """One line on how it ended: status, the last error lines of its log, the log's path."""
        with self.log_path.open("rb") as log:
            log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if _ERROR_LINE.search(line)][-_MAX_ERROR_LINES:] or lines[-1:]
        excerpt = " | ".join(dict.fromkeys(errors)) or "it wrote nothing"
        return f"{self.name} {self._exit()}: {excerpt} (log: {self.log_path})"

    def _exit(self) -> str:
        match self.returncode:
            case None:
                return "is still running"
            case int(status) if status < 0:
                return f"was ended by {signal.Signals(-status).name}"
            case status:
                return f"ended with status {status}"
