"""What the benchmarks measured: one table to read, and JSON to compare with another run."""

import json
import statistics
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


HEADINGS = ("", "", "ours", "spread", "limit", "ratio", "aim", "")


def table(rows: Sequence[Row]) -> str:
    """The rows as text, in columns."""
    cells = [HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in (0, 1, 7) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )


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
    """What two runs share, and how much the second has of the first; by ratio where there is one."""
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
        lines.append(f"{row.name:50} {'ratio' if by_ratio else row.unit:12} {was:10.3g} → {is_now:<10.3g} {change}")
    return "\n".join(lines)
