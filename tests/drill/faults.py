"""The faults of a drill, planned from a seed and each undone at its end."""

import os
import random
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path

import psutil

from infra.faust.app import SESSION_TIMEOUT
from tests.drill.cluster import has_preferred_leaders
from tests.drill.servers import Cut, DrillServers
from tests.support.waiting import wait_until

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
CLOCKS = "clocks"
"""Folder of `tests.drill.clock`."""
CLOCKED = ("compress", "progress", "projections")
CLOCK_SECONDS = 60.0  # ahead or behind: the most by which the clocks of two machines may differ
WHOLE_SECONDS = 180.0
STORAGE_BYTES = 64 * 1024 * 1024
MOUNT_SECONDS = 60.0
BETWEEN_SECONDS = (1.0, 4.0)
EXPULSION_SECONDS = 2 * SESSION_TIMEOUT


class Kind(StrEnum):
    KILL = "kill"  # SIGKILL
    PAUSE = "pause"  # SIGSTOP, then SIGCONT
    EXPEL = "expel"  # the same, of a progress worker for longer than its session: it must end
    RESTART = "restart"  # SIGTERM of a server
    CLOCK = "clock"  # of one worker, off by a minute
    CUT_KAFKA = "cut kafka"
    CUT_CASSANDRA = "cut cassandra"
    HALF_KAFKA = "half kafka"
    HALF_CASSANDRA = "half cassandra"
    FULL = "full"  # no room on the storage
    READ_ONLY = "read-only"  # the storage
    ELECT = "elect"  # new leaders of partitions, as one broker stops, and the old ones after its start
    ROLL = "roll"  # SIGTERM of each node in turn


CUTS = {
    Kind.CUT_KAFKA: (Cut.BROKEN, "kafka"),
    Kind.CUT_CASSANDRA: (Cut.BROKEN, "cassandra"),
    Kind.HALF_KAFKA: (Cut.HALF_OPEN, "kafka"),
    Kind.HALF_CASSANDRA: (Cut.HALF_OPEN, "cassandra"),
}
ON_STORAGE = (Kind.FULL, Kind.READ_ONLY)
INSTANT = (Kind.KILL, Kind.RESTART, Kind.ELECT, Kind.ROLL)
OF_CLUSTER = (Kind.ELECT, Kind.ROLL)


@dataclass(frozen=True)
class Fault:
    """One fault: after ``wait`` seconds it lasts for ``seconds``.

    ``which``: one of several processes of the target, as a place between 0 and 1. ``ahead``: of a clock, in seconds.
    """

    kind: Kind
    target: str
    seconds: float
    wait: float
    which: float = 0.0
    ahead: float = 0.0

    def __str__(self) -> str:
        ahead = f" {self.ahead:+.0f} s" if self.ahead else ""
        return f"{self.kind} {self.target}{ahead}" + (f" for {self.seconds:.0f} s" if self.seconds else "")


def plan(seed: int, count: int, seconds: tuple[float, float], kinds: Iterable[Kind]) -> list[Fault]:
    """``count`` faults; each kind comes before any comes again, in random order."""
    chance = random.Random(seed)
    kinds = list(kinds)
    faults: list[Fault] = []
    while len(faults) < count:
        for kind in chance.sample(kinds, len(kinds)):
            lasts = 0.0 if kind in INSTANT else chance.uniform(*seconds)
            lasts = max(lasts, EXPULSION_SECONDS) if kind is Kind.EXPEL else lasts
            ahead = chance.choice((-CLOCK_SECONDS, CLOCK_SECONDS)) if kind is Kind.CLOCK else 0.0
            wait = chance.uniform(*BETWEEN_SECONDS)
            faults.append(Fault(kind, chance.choice(_targets(kind)), lasts, wait, chance.random(), ahead))
    return faults[:count]


def _targets(kind: Kind) -> Sequence[str]:
    if kind in CUTS:
        return CLIENTS[CUTS[kind][1]]
    if kind in ON_STORAGE:
        return (STORAGE,)
    if kind is Kind.CLOCK:
        return CLOCKED
    if kind is Kind.EXPEL:
        return ("progress",)
    if kind is Kind.ELECT:
        return ("kafka",)
    return tuple(CLIENTS) if kind in (Kind.RESTART, Kind.ROLL) else tuple(ROLES)


def processes_of(role: str, drill: Path) -> Iterator[psutil.Process]:
    """The running processes of a role that keep their data in the folder of this drill.

    Other children of this process may be another system.
    """
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            command = " ".join(child.cmdline())
            if ROLES[role] in command and str(drill) in command + child.environ().get("SHRINKSTREAM_DATA_DIR", ""):
                yield child


def one_of(fault: Fault, drill: Path) -> psutil.Process:
    """The process that a fault is about, among those of its role."""
    wait_until(lambda: list(processes_of(fault.target, drill)), f"{fault.target} runs", WHOLE_SECONDS)
    processes = sorted(processes_of(fault.target, drill), key=place_of)
    return processes[int(fault.which * len(processes))]


def _has_ended(process: psutil.Process) -> bool:
    return not process.is_running()


def place_of(process: psutil.Process) -> tuple[str, str]:
    """What a process has in common with those before and after it, that its supervisor ended or restarted."""
    with suppress(psutil.NoSuchProcess):
        return process.cwd(), process.environ().get("SHRINKSTREAM_WORKER_PORT", "")
    return "", ""


def ports_of(role: str, drill: Path, place: tuple[str, str]) -> set[int]:
    """Local ports of the connections of one process of a role."""
    ports: set[int] = set()
    for process in processes_of(role, drill):
        if place_of(process) == place:
            with suppress(psutil.NoSuchProcess):
                ports |= {each.laddr.port for each in process.net_connections("tcp") if each.raddr}
    return ports


def make(fault: Fault, servers: DrillServers, storage: Path, drill: Path) -> None:
    """Make the fault, and undo it after its time.

    ``drill``: the folder of its data. A process that is restarted stays cut off, but has a right clock.
    """
    match fault.kind:
        case Kind.KILL:
            one_of(fault, drill).kill()
        case Kind.RESTART:
            one_of(fault, drill).terminate()
        case Kind.PAUSE | Kind.EXPEL:
            process = one_of(fault, drill)
            process.suspend()
            time.sleep(fault.seconds)
            with suppress(psutil.NoSuchProcess):
                process.resume()
            if fault.kind is Kind.EXPEL:
                wait_until(partial(_has_ended, process), "the expelled worker ends", WHOLE_SECONDS)
        case Kind.CLOCK:
            clock = drill / CLOCKS / str(one_of(fault, drill).pid)
            clock.with_suffix(".new").write_text(str(fault.ahead))
            clock.with_suffix(".new").replace(clock)
            time.sleep(fault.seconds)
            clock.unlink()
        case Kind.ELECT:
            one_of(fault, drill).terminate()
            servers.wait_until_whole()
            wait_until(partial(has_preferred_leaders, servers.brokers), "the old leaders are back", WHOLE_SECONDS)
        case Kind.ROLL:
            for process in sorted(processes_of(fault.target, drill), key=place_of):
                servers.wait_until_whole()
                process.terminate()
                # Not `wait`: the exit status is the supervisor's.
                wait_until(partial(_has_ended, process), f"{fault.target} stops", WHOLE_SECONDS)
            servers.wait_until_whole()
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
            place = place_of(one_of(fault, drill))
            servers.cut(server, how, lambda: ports_of(fault.target, drill, place))
            time.sleep(fault.seconds)
            servers.restore(server)


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
