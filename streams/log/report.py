"""The report of a rebuild or verification of a read model."""

from collections.abc import Callable, Container
from dataclasses import dataclass, field

DIFFERENCES_NAMED = 100
MARKS_KEPT = 100_000

OnEvents = Callable[[int, int], None]
"""Called with the progress so far, and its total."""


@dataclass
class Report:
    """``among``: the ``marks`` of an earlier verification; only differences found by both count.

    Without marks of all of them, each difference counts.
    """

    events: int = 0
    differences: list[str] = field(default_factory=list)
    difference_count: int = 0
    among: Container[int] | None = None
    marks: set[int] = field(default_factory=set)

    def confirming(self) -> "Report":
        """The report of a second verification: of the differences that are still there."""
        return Report(among=self.marks if self.difference_count <= MARKS_KEPT else None)

    def differs(self, what: str, *found: bytes | None) -> None:
        """Count a difference, described by ``what``; ``found`` distinguishes it from others of that description."""
        mark = hash((what, found))
        if self.among is not None and mark not in self.among:
            return
        if len(self.marks) < MARKS_KEPT:
            self.marks.add(mark)
        self.difference_count += 1
        if len(self.differences) < DIFFERENCES_NAMED:
            self.differences.append(what)
