"""Shell commands of the documents, run as a reader would in one terminal."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tests.support.markdown import ROOT

_MARK = "\x1e"  # ASCII's record separator: no command prints it


def reader_folder(folder: Path, data_dir: Path) -> Path:
    """A folder that looks like a checkout to the commands of the documents, and in which they may write."""
    folder.mkdir(exist_ok=True)
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / ".shrinkstream").symlink_to(data_dir)
    (folder / "infra").symlink_to(ROOT / "infra")
    (folder / "docker-compose.yml").symlink_to(ROOT / "docker-compose.yml")
    return folder


def run_blocks(
    blocks: Sequence[str], *, folder: Path, environment: Mapping[str, str], timeout: float = 180
) -> list[str]:
    """Run code blocks one after the other in one shell, up to the first that fails; what each printed.

    What they leave running in the background ends with them.
    """
    script = "set -euo pipefail\n" + "".join(f"{block}\nprintf '{_MARK}'\n" for block in blocks)
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            ["bash", "-c", script],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for file in (output, errors):
            file.seek(0)
        *printed, rest = output.read().split(_MARK)
        assert code == 0, f"block {len(printed) + 1} failed:\n{blocks[len(printed)]}\n{rest}\n{errors.read()}"
    return printed
