"""What `up` writes into its data dir is private, also in one that an earlier version has written."""

from pathlib import Path

import pytest

from infra.cli.system import TARGETS, WORKER_PORTS, _make_private, _write_targets
from infra.devserver.ports import remembered_ports


@pytest.mark.parametrize("is_older", [False, True])
def test_folders_and_files_exclude_other_users(tmp_path: Path, is_older: bool) -> None:
    folders, files = ("faust", "logs", "spool", "storage"), (TARGETS, WORKER_PORTS)
    if is_older:
        for name in folders:
            (tmp_path / name).mkdir()
            (tmp_path / name).chmod(0o755)
        for name in (*files, Path(TARGETS).with_suffix(".partial").name):
            (tmp_path / name).write_text("{}")
            (tmp_path / name).chmod(0o644)
    _make_private(tmp_path)
    given = remembered_ports(tmp_path / WORKER_PORTS, ["progress"])
    _write_targets(tmp_path / TARGETS, {"api": "127.0.0.1:1"}, {"api": "api"})
    assert [name for name in (*folders, *files) if (tmp_path / name).stat().st_mode & 0o077] == []
    assert remembered_ports(tmp_path / WORKER_PORTS, ["progress"]) == given
