"""Memory and CPU time of child processes, from ``/proc`` (proc_pid_stat(5)); 0 on systems without it."""

import os
import resource
from pathlib import Path

_PAGE = resource.getpagesize()
_TICKS = os.sysconf("SC_CLK_TCK")

# Fields of /proc/PID/stat, counted from the one after the name, which may contain spaces and brackets.
_USER_TICKS, _SYSTEM_TICKS, _RESIDENT_PAGES = 11, 12, 21


def resident_bytes(pid: int) -> float:
    """Resident memory of a process; 0 if it has ended."""
    fields = _fields(pid)
    return int(fields[_RESIDENT_PAGES]) * _PAGE if fields else 0


def cpu_seconds(pid: int) -> float:
    """CPU time of a running process; 0 if it has ended."""
    fields = _fields(pid)
    return (int(fields[_USER_TICKS]) + int(fields[_SYSTEM_TICKS])) / _TICKS if fields else 0


def ended_children_seconds() -> float:
    """CPU time of all children of this process that have ended and were waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _fields(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return []
