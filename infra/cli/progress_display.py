"""Progress display while waiting for a request."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import click

from infra.cli.terminal import Pace, details, printable, settled

LINE_SECONDS = 10.0  # interval between lines without a terminal


class Display(Protocol):
    """A progress display."""

    def show(self, status: dict[str, Any]) -> None:
        """Show a new status."""

    def show_error(self, error: Exception) -> None:
        """Show a transient error that is being retried."""


@contextmanager
def progress_display() -> Iterator[Display]:
    """A progress bar on standard error, or plain lines if it is not a terminal."""
    if sys.stderr.isatty():
        from infra.cli.progress_bar import Bar  # lazy: importing rich is slow

        with Bar() as bar:
            yield bar
    else:
        yield Lines()


class Lines:
    """A line of plain text every ten seconds."""

    def __init__(self) -> None:
        self._pace = Pace()
        self._shown_at = time.monotonic()

    def show(self, status: dict[str, Any]) -> None:
        now, done = time.monotonic(), settled(status)
        self._pace.note(now, done)
        if now - self._shown_at >= LINE_SECONDS and status["status"] == "processing":
            self._shown_at = now
            line = ", ".join(filter(None, (f"{done:,}/{status['total']:,} images", details(status, self._pace, now))))
            click.echo(line, err=True)

    def show_error(self, error: Exception) -> None:
        click.echo(f"{printable(str(error))}; retrying", err=True)
