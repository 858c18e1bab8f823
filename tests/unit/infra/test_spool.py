"""Spool files live as long as their writer, however that ends."""

import subprocess
import sys
from pathlib import Path

import pytest

from infra.spool import spool_file, sweep

WRITER = """
import sys, time
from pathlib import Path
from infra.spool import spool_file
with spool_file(Path(sys.argv[1]), "upload-") as file:
    file.write(b"half a file")
    file.flush()
    print("written", flush=True)
    time.sleep(60)
"""


def test_spool_file_is_deleted_also_after_error(tmp_path: Path) -> None:
    with spool_file(tmp_path / "spool", "a-") as file:
        file.write(b"x")
        file.flush()
        assert Path(file.name).read_bytes() == b"x"
    with pytest.raises(RuntimeError), spool_file(tmp_path / "spool", "a-"):
        raise RuntimeError
    assert list((tmp_path / "spool").iterdir()) == []


def test_sweep_deletes_only_files_of_dead_writers(tmp_path: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]
    )
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "written\n"
        with spool_file(tmp_path, "output-") as own:
            assert sweep(tmp_path) == 0
            writer.kill()
            writer.wait(60)
            assert sweep(tmp_path) == 1
            assert [path.name for path in tmp_path.iterdir()] == [Path(own.name).name]
    finally:
        writer.kill()


def test_sweep_accepts_missing_folder(tmp_path: Path) -> None:
    assert sweep(tmp_path / "none") == 0
