"""Spool files, locked by their writers: an unlocked file is a leftover of a dead process.

``flock`` belongs to the open file and is released when the process ends, however it ends.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def spool_file(folder: Path, prefix: str) -> Iterator[BinaryIO]:
    """A new file in ``folder``, open for writing and reading; deleted at the end of the context, also after errors."""
    folder.mkdir(parents=True, exist_ok=True)
    file = _locked(folder, prefix)
    try:
        with file:
            yield file
    finally:
        Path(file.name).unlink(missing_ok=True)


def _locked(folder: Path, prefix: str) -> BinaryIO:
    while True:
        descriptor, name = tempfile.mkstemp(dir=folder, prefix=prefix, suffix=".csv")
        os.close(descriptor)
        file = Path(name).open("w+b")  # noqa: SIM115 - the caller closes it
        fcntl.flock(file, fcntl.LOCK_EX)
        # A concurrent sweep may have deleted it before it was locked.
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()


def sweep(folder: Path) -> int:
    """Delete the files of dead writers; returns their number. Safe beside running writers."""
    removed = 0
    for path in folder.glob("*.csv"):
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        except (BlockingIOError, FileNotFoundError):
            continue  # in use, or deleted by its writer
        removed += 1
    return removed
