"""``shrinkstream up``: the whole system in the foreground."""

import asyncio
import signal

import click

from infra.cli.discovery import discovery_file
from infra.cli.system import running_system
from infra.settings import Settings


async def run_until_stopped(settings: Settings, compress_workers: int) -> None:
    """Run everything until SIGTERM or SIGINT, which may arrive during start-up."""
    task = asyncio.current_task()
    assert task is not None
    stopped = asyncio.Event()

    def stop() -> None:
        if not running and not stopped.is_set():  # a second signal must not interrupt the clean-up
            task.cancel()
        stopped.set()

    running = False
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        async with running_system(settings, compress_workers=compress_workers) as ready:
            running = True
            with discovery_file(ready):
                click.echo(f"ready http://{ready.own_address}")
                await stopped.wait()
    except asyncio.CancelledError:
        if not stopped.is_set():
            raise
