"""``shrinkstream up``: the system, kept running."""

import asyncio
import signal

import click

from infra.cli.running_up import told_to_others
from infra.cli.system import running_system
from infra.settings import Settings


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
            with told_to_others(ready):
                click.echo(f"ready http://{ready.host}:{ready.port}")
                await stopped.wait()
    except asyncio.CancelledError:
        if not stopped.is_set():
            raise
