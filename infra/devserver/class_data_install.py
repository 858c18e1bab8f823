"""``python -m infra.devserver.class_data_install`` creates the missing archives of the servers' class data."""

import asyncio
import hashlib
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from infra.devserver.cassandra import EmbeddedCassandra
from infra.devserver.class_data import archive_of, checksum_of, class_data_options
from infra.devserver.jars import Server, ensure_jars
from infra.devserver.kafka import EmbeddedKafka
from infra.devserver.server import EmbeddedServer
from infra.errors import ExplainedError

DUMP_SECONDS = 300.0
SERVERS: Mapping[Server, type[EmbeddedServer]] = {"kafka": EmbeddedKafka, "cassandra": EmbeddedCassandra}


async def make_archive(server: Server) -> bool:
    """Create a missing archive from the classes that a start of the server loads; returns whether it did."""
    class_path = ensure_jars(server)
    if class_data_options(server, class_path):
        return False
    archive = archive_of(server, class_path)
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".class-data-") as folder:
        scratch = Path(folder)
        started = SERVERS[server](scratch)
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
            async with asyncio.timeout(DUMP_SECONDS):
                status = await dump.wait()
            if status != 0:
                raise ExplainedError(dump.exit_summary())
        finally:
            await dump.stop(0)
        with (scratch / "archive").open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        for stale in archive.parent.glob(f"{server}-*"):
            stale.unlink(missing_ok=True)
        (scratch / "archive").replace(archive)
        (scratch / "sha256").write_text(sha256)
        (scratch / "sha256").replace(checksum_of(archive))
    return True


async def _make_all() -> None:
    started = time.monotonic()
    results = await asyncio.gather(*map(make_archive, SERVERS), return_exceptions=True)
    for server, result in zip(SERVERS, results, strict=True):
        if isinstance(result, ExplainedError | OSError | TimeoutError):
            sys.stderr.write(f"warning: {server} will start more slowly: {result}\n")
        elif isinstance(result, BaseException):
            raise result
        elif result:
            sys.stderr.write(f"class data of {server} archived ({time.monotonic() - started:.1f} s)\n")


if __name__ == "__main__":
    asyncio.run(_make_all())  # a failure costs speed only, so it is a warning
