"""The progress bar of a terminal. ``NO_COLOR`` and dumb terminals are rich's to honour."""

import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from infra.cli.terminal import Pace, details, printable, settled


class Bar:
    """How far a request is: images, images per second, bytes saved, time taken and left."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("images"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
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

    def trouble(self, reason: Exception) -> None:
        self._update(f"{printable(str(reason), 60)}; asking again")

    def _update(self, text: str, total: int | None = None, completed: int | None = None) -> None:
        self._progress.update(self._task, description=text, total=total, completed=completed)
