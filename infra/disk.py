"""How much room there is."""

import os
from pathlib import Path


def free_bytes(folder: Path) -> float:
    """The room that a process without privileges has on the disk of a folder; 0 where there is no folder."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return 0
    return float(found.f_bavail * found.f_frsize)
