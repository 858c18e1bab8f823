"""Who uses the processor and the memory while a system is at work, by the role of its processes."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

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
SAMPLE_SECONDS = 0.2


def cpu_seconds(root: int) -> Counter[str]:
    """User and system time so far of the process ``root`` and all below it, by role."""
    used: Counter[str] = Counter()
    for role, process in _members(root):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            used[role] += times.user + times.system
    return used


def resident_bytes(root: int) -> Counter[str]:
    """Memory of the process ``root`` and all below it, by role; pages that some share are counted for each."""
    resident: Counter[str] = Counter()
    for role, process in _members(root):
        with suppress(psutil.NoSuchProcess):
            resident[role] += process.memory_info().rss
    return resident


@contextmanager
def watched_memory(root: int) -> Iterator[list[Counter[str]]]:
    """Yields a list that fills with what `resident_bytes` finds, as long as the block lasts."""
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


def _members(root: int) -> Iterator[tuple[str, psutil.Process]]:
    top = psutil.Process(root)
    for process in (top, *top.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            command = " ".join(process.cmdline())
            yield next((role for mark, role in ROLES.items() if mark in command), "up"), process
