"""The faults of a drill, planned from a seed and each undone at its end."""

import os
import random
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import psutil

from tests.drill.servers import Cut, DrillServers

# What tells each process apart, in its command line.
ROLES = {
    "api": "infra.cli api",
    "compress": "worker compress",
    "progress": "worker progress",
    "projections": "worker projections",
    "kafka": "kafka.Kafka",
    "cassandra": "CassandraDaemon",
}
OURS = ("api", "compress", "progress", "projections")
CLIENTS = {"kafka": OURS, "cassandra": ("api", "projections")}
STORAGE = "storage"
STORAGE_BYTES = 64 * 1024 * 1024
MOUNT_SECONDS = 10.0
BETWEEN_SECONDS = (1.0, 4.0)


class Kind(StrEnum):
    KILL = "kill"  # SIGKILL
    PAUSE = "pause"  # SIGSTOP, then SIGCONT
    RESTART = "restart"  # SIGTERM of a server
    CUT_KAFKA = "cut kafka"
    CUT_CASSANDRA = "cut cassandra"
    HALF_KAFKA = "half kafka"
    HALF_CASSANDRA = "half cassandra"
    FULL = "full"  # no room on the storage
    READ_ONLY = "read-only"  # the storage


CUTS = {
    Kind.CUT_KAFKA: (Cut.BROKEN, "kafka"),
    Kind.CUT_CASSANDRA: (Cut.BROKEN, "cassandra"),
    Kind.HALF_KAFKA: (Cut.HALF_OPEN, "kafka"),
    Kind.HALF_CASSANDRA: (Cut.HALF_OPEN, "cassandra"),
}
ON_STORAGE = (Kind.FULL, Kind.READ_ONLY)
INSTANT = (Kind.KILL, Kind.RESTART)


@dataclass(frozen=True)
class Fault:
    """One fault: after ``wait`` seconds it lasts for ``seconds``."""

    kind: Kind
    target: str
    seconds: float
    wait: float

    def __str__(self) -> str:
        return f"{self.kind} {self.target}" + (f" {self.seconds:.0f} s" if self.seconds else "")


def plan(seed: int, count: int, seconds: tuple[float, float], kinds: Iterable[Kind]) -> list[Fault]:
    """``count`` faults; each kind comes before any comes again, in random order."""
    chance = random.Random(seed)
    kinds = list(kinds)
    faults: list[Fault] = []
    while len(faults) < count:
        for kind in chance.sample(kinds, len(kinds)):
            lasts = 0.0 if kind in INSTANT else chance.uniform(*seconds)
            faults.append(Fault(kind, chance.choice(_targets(kind)), lasts, chance.uniform(*BETWEEN_SECONDS)))
    return faults[:count]


def _targets(kind: Kind) -> Sequence[str]:
    if kind in CUTS:
        return CLIENTS[CUTS[kind][1]]
    if kind in ON_STORAGE:
        return (STORAGE,)
    return tuple(CLIENTS) if kind is Kind.RESTART else tuple(ROLES)


def processes_of(role: str) -> Iterator[psutil.Process]:
    """The running processes of a role, among the descendants of this process."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if ROLES[role] in " ".join(child.cmdline()):
                yield child


def ports_of(role: str) -> set[int]:
    """Local ports of a role's connections."""
    ports: set[int] = set()
    for process in processes_of(role):
        with suppress(psutil.NoSuchProcess):
            ports |= {each.laddr.port for each in process.net_connections("tcp") if each.raddr}
    return ports


def make(fault: Fault, servers: DrillServers, storage: Path) -> None:
    """Make the fault, and undo it after its time."""
    time.sleep(fault.wait)
    match fault.kind:
        case Kind.KILL:
            for process in processes_of(fault.target):
                process.kill()
        case Kind.RESTART:
            for process in processes_of(fault.target):
                process.terminate()
        case Kind.PAUSE:
            stopped = list(processes_of(fault.target))
            for process in stopped:
                process.suspend()
            time.sleep(fault.seconds)
            for process in stopped:
                with suppress(psutil.NoSuchProcess):
                    process.resume()
        case Kind.FULL:
            filler = storage / "filler"
            with filler.open("wb", buffering=0) as file, suppress(OSError):
                while file.write(b"\0" * 4096):
                    pass
            time.sleep(fault.seconds)
            filler.unlink()
        case Kind.READ_ONLY:
            _remount(storage, "ro")
            time.sleep(fault.seconds)
            _remount(storage, "rw")
        case cut:
            how, server = CUTS[cut]
            servers.run(servers.proxies[server].cut(how, lambda: ports_of(fault.target)))
            time.sleep(fault.seconds)
            servers.run(servers.proxies[server].restore())


def can_mount() -> bool:
    """Whether storage can be made full or read-only here: on Linux, as root with CAP_SYS_ADMIN."""
    if os.geteuid() != 0:
        return False
    probe = subprocess.run(["unshare", "--mount", "true"], capture_output=True, timeout=MOUNT_SECONDS, check=False)
    return probe.returncode == 0


@contextmanager
def small_storage(folder: Path, *, mounted: bool) -> Iterator[Path]:
    """A folder for images and CSVs, with a file system of its own if ``mounted``."""
    folder.mkdir(parents=True)
    if not mounted:
        yield folder
        return
    _mount("-t", "tmpfs", "-o", f"size={STORAGE_BYTES},mode=0700", "drill", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], timeout=MOUNT_SECONDS, check=True)


def _remount(folder: Path, mode: str) -> None:
    deadline = time.monotonic() + MOUNT_SECONDS
    while True:
        try:
            return _mount("-o", f"remount,{mode}", str(folder))
        except subprocess.CalledProcessError:
            if time.monotonic() > deadline:  # busy while a file is open for writing
                raise
            time.sleep(0.01)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], timeout=MOUNT_SECONDS, check=True, capture_output=True)
