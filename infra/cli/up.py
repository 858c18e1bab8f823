"""``shrinkstream up``: the system, kept running."""

import asyncio
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from infra.cli.system import running_system
from infra.settings import PREFIX, Settings

# What another command must know to work with the running system; no secrets.
TOLD = {
    *("kafka_brokers", "topic_prefix", "partitions", "cassandra_hosts", "cassandra_keyspace"),
    *("data_dir", "storage_url", "public_url", "url"),
}


async def run_until_stopped(settings: Settings, compress_workers: int) -> None:
    """Run everything until SIGTERM or SIGINT, which may come while it is still starting."""
    task = asyncio.current_task()
    assert task is not None
    stopped = asyncio.Event()

    def stop() -> None:
        stopped.set()
        if not running:
            task.cancel()

    running = False
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        async with running_system(settings, compress_workers=compress_workers) as ready:
            running = True
            with _told_in(ready.data_dir / "env", ready):
                click.echo(f"ready http://{ready.host}:{ready.port}")
                await stopped.wait()
    except asyncio.CancelledError:
        if not stopped.is_set():
            raise


@contextmanager
def _told_in(file: Path, ready: Settings) -> Iterator[None]:
    """A file for the shell's ``.``, while the system runs: what further commands need to find it."""
    found = ready.model_copy(
        update={"data_dir": ready.data_dir.absolute(), "url": f"http://{ready.host}:{ready.port}"}
    ).model_dump(include=TOLD, exclude_none=True)
    file.write_text(
        "".join(f"export {PREFIX}{name.upper()}={shlex.quote(str(found[name]))}\n" for name in sorted(found))
    )
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
