"""A clock of each process that a drill can set, imported by every Python process with this folder in PYTHONPATH.

The file named by the process id in the folder DRILL_CLOCKS has the seconds by which `time.time` is ahead. It is the
only clock whose times are compared with those of other processes; the others measure durations.
"""

import os
import time
from pathlib import Path

READ_INTERVAL = 0.1  # seconds between two reads of the file

_real, _real_ns, _monotonic = time.time, time.time_ns, time.monotonic
_file = Path(os.environ.get("DRILL_CLOCKS", ""), str(os.getpid()))
_read_at = -READ_INTERVAL
_ahead = 0.0


def _seconds_ahead() -> float:
    global _read_at, _ahead
    if (now := _monotonic()) - _read_at >= READ_INTERVAL:
        _read_at = now
        try:
            _ahead = float(_file.read_text(encoding="ascii"))
        except FileNotFoundError:
            _ahead = 0.0
    return _ahead


if "DRILL_CLOCKS" in os.environ:
    time.time = lambda: _real() + _seconds_ahead()
    time.time_ns = lambda: _real_ns() + int(_seconds_ahead() * 1e9)
