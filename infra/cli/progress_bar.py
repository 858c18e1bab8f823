"""Progress bar for terminals. rich handles ``NO_COLOR`` and dumb terminals."""

import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column

from infra.cli.terminal import Pace, details, printable, settled


class Bar:
    """Progress bar of a request: images, images per second, bytes saved, time left."""

    def __init__(self) -> None:
        self._progress = Progress(
            # In a narrow terminal only the bar shrinks.
            TextColumn("images", table_column=Column(no_wrap=True)),
            BarColumn(),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task("", total=None)
        self._pace = Pace()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, status: dict[str, Any]) -> None:
        now, done = time.monotonic(), settled(status)
        self._pace.note(now, done)
        self._update(details(status, self._pace, now), total=status["total"], completed=done)

    def show_error(self, error: Exception) -> None:
        self._update(f"{printable(str(error), 60)}; retrying")

    def _update(self, text: str, total: int | None = None, completed: int | None = None) -> None:
        self._progress.update(self._task, description=text, total=total, completed=completed)
