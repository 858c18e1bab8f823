"""Files that live as long as one piece of work: each is locked by its writer, so that others see whether that lives.

``flock`` belongs to the open file and ends with the process, however that ends: what nobody holds is left over.
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
    """A new file in ``folder``, open for writing and reading; it is gone afterwards, whatever happens."""
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
        # A sweep may have taken it in the moment before it was locked.
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()


def sweep(folder: Path) -> int:
    """Remove the files whose writers are gone; returns how many. Others may be writing meanwhile."""
    removed = 0
    for path in folder.glob("*.csv"):
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        except (BlockingIOError, FileNotFoundError):
            continue  # in use, or gone just now
        removed += 1
    return removed
