"""What is shown while a request is waited for."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import click

from infra.cli.terminal import Pace, details, printable, settled

LINE_SECONDS = 10.0  # between two lines where there is no terminal


class Display(Protocol):
    """What a wait shows."""

    def show(self, status: dict[str, Any]) -> None:
        """How far the request is now."""

    def trouble(self, reason: Exception) -> None:
        """The server doesn't answer just now."""


@contextmanager
def progress_display() -> Iterator[Display]:
    """A bar on standard error, or a line now and then where that is no terminal."""
    if sys.stderr.isatty():
        from infra.cli.progress_bar import Bar  # rich, which takes a while to import

        with Bar() as bar:
            yield bar
    else:
        yield Lines()


class Lines:
    """A line of plain text every ten seconds."""

    def __init__(self) -> None:
        self._pace = Pace()
        self._told = time.monotonic()

    def show(self, status: dict[str, Any]) -> None:
        now, done = time.monotonic(), settled(status)
        self._pace.note(now, done)
        if now - self._told >= LINE_SECONDS and status["status"] == "processing":
            self._told = now
            news = ", ".join(filter(None, (f"{done:,}/{status['total']:,} images", details(status, self._pace, now))))
            click.echo(news, err=True)

    def trouble(self, reason: Exception) -> None:
        click.echo(f"{printable(str(reason))}; asking again", err=True)
