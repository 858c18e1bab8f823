"""Free disk space."""

import os
from pathlib import Path


def free_bytes(folder: Path) -> float:
    """Disk space of a folder that an unprivileged process may use, in bytes; 0 if the folder doesn't exist."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return 0
    return float(found.f_bavail * found.f_frsize)
