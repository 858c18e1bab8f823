"""Results of the benchmarks: lines of a table as they come, and JSON to compare with another run."""

import json
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One thing measured, once in each round, and what it is held against in the same rounds.

    ``aim`` is for the ratio where there is a ``limit``, else for the measured value itself.
    """

    name: str
    unit: str
    ours: Sequence[float]
    limit: Sequence[float] = ()
    against: str = ""
    aim: float | None = None
    more_is_better: bool = True

    @property
    def value(self) -> float:
        return statistics.median(self.ours)

    @property
    def ratio(self) -> float | None:
        """The median of the rounds' ratios: a round's two sides met the machine in the same mood."""
        if not self.limit:
            return None
        return statistics.median(ours / limit for ours, limit in zip(self.ours, self.limit, strict=True))

    @property
    def reached(self) -> bool | None:
        """Whether the aim is reached; None without an aim."""
        if self.aim is None:
            return None
        reached = self.value if self.ratio is None else self.ratio
        return reached >= self.aim if self.more_is_better else reached <= self.aim


_WIDTHS = (68, 11, 8, 15, 8, 6, 7)


def heading(name: str) -> str:
    """The first line of a table of rows."""
    return _columns((name, "", "ours", "spread", "limit", "ratio", "aim", ""))


def line(row: Row) -> str:
    """A row in columns of fixed widths: it is printed as soon as it is measured."""
    return _columns(_cells(row))


def progress(text: str) -> None:
    """Print a step of a benchmark, with the time, on standard error."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _columns(cells: Sequence[str]) -> str:
    left, unit, *figures, verdict = cells
    aligned = [figure.rjust(width) for figure, width in zip(figures, _WIDTHS[2:], strict=True)]
    return "  ".join((left.ljust(_WIDTHS[0]), unit.ljust(_WIDTHS[1]), *aligned, verdict)).rstrip()


def _cells(row: Row) -> tuple[str, ...]:
    spread = f"{_short(min(row.ours))} to {_short(max(row.ours))}" if len(row.ours) > 1 else ""
    limit = _short(statistics.median(row.limit)) if row.limit else ""
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    aim = "" if row.aim is None else f"{'≥' if row.more_is_better else '≤'} {row.aim:g}"
    verdict = {None: "", True: "reached", False: "missed"}[row.reached]
    return (row.name, row.unit, _short(row.value), spread, limit, ratio, aim, f"{verdict:8}{row.against}".rstrip())


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def save(rows: Iterable[Row], path: Path) -> None:
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def load(path: Path) -> list[Row]:
    return [Row(**row) for row in json.loads(path.read_text())]


def comparison(before: Iterable[Row], after: Iterable[Row]) -> str:
    """The rows that two runs share, with the second as a multiple of the first; by ratio where there is one."""
    earlier = {row.name: row for row in before}
    lines = []
    for row in after:
        if (old := earlier.get(row.name)) is None:
            continue
        by_ratio = row.ratio is not None and old.ratio is not None
        was, is_now = (old.ratio, row.ratio) if by_ratio else (old.value, row.value)
        assert was is not None
        assert is_now is not None
        change = f"{is_now / was:.2f} times" if was else "from nothing"
        lines.append(f"{row.name:68} {'ratio' if by_ratio else row.unit:12} {was:10.3g} → {is_now:<10.3g} {change}")
    return "\n".join(lines)
