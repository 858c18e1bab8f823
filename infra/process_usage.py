"""What child processes use, where the kernel tells it in ``/proc`` (proc_pid_stat(5)); elsewhere nothing."""

import os
import resource
from pathlib import Path

_PAGE = resource.getpagesize()
_TICKS = os.sysconf("SC_CLK_TCK")

# Fields of /proc/PID/stat, counted from the one after the name, which may have spaces and brackets in it.
_USER_TICKS, _SYSTEM_TICKS, _RESIDENT_PAGES = 11, 12, 21


def resident_bytes(pid: int) -> float:
    """Memory of a process; 0 where it has ended."""
    fields = _fields(pid)
    return int(fields[_RESIDENT_PAGES]) * _PAGE if fields else 0


def cpu_seconds(pid: int) -> float:
    """Processor time of a process that runs; 0 where it has ended."""
    fields = _fields(pid)
    return (int(fields[_USER_TICKS]) + int(fields[_SYSTEM_TICKS])) / _TICKS if fields else 0


def ended_children_seconds() -> float:
    """Processor time of all children of this process that have ended and were waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _fields(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return []
