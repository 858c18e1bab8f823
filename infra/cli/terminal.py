"""Terminal output: figures of a request, and sanitising of untrusted text."""

from collections import deque
from collections.abc import Iterator
from typing import Any

PACE_SECONDS = 30.0  # sliding window


class Pace:
    """Throughput in images per second over a sliding window of ``PACE_SECONDS``."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def note(self, now: float, done: int) -> None:
        """Add a sample. ``now``: monotonic seconds. A smaller ``done`` than before means a retry and restarts."""
        if self._samples and done < self._samples[-1][1]:
            self._samples.clear()
        self._samples.append((now, done))
        # Keeps the newest sample older than the window, as its start.
        while len(self._samples) > 2 and self._samples[1][0] <= now - PACE_SECONDS:
            self._samples.popleft()

    def per_second(self, now: float) -> float | None:
        """Images per second; None without progress in the window."""
        if not self._samples:
            return None
        (began, first), (_, last) = self._samples[0], self._samples[-1]
        return (last - first) / (now - began) if last > first and now > began else None

    def seconds_left(self, now: float, waiting: int) -> float | None:
        rate = self.per_second(now)
        return None if rate is None else waiting / rate


def details(status: dict[str, Any], pace: Pace, now: float) -> str:
    """Details of the progress display: images per second, bytes saved, time left."""
    rate, left = pace.per_second(now), pace.seconds_left(now, status["total"] - settled(status))
    parts = (
        f"{rate:.1f} images/s" if rate else "",
        saved(status),
        f"{clock(left)} left" if left and status["status"] == "processing" else "",
    )
    return ", ".join(filter(None, parts))


def settled(status: dict[str, Any]) -> int:
    """Number of images that have a result."""
    count: int = status["succeeded"] + status["failed"]
    return count


def saved(status: dict[str, Any]) -> str:
    """Bytes saved by compression, such as `1.2 of 3.4 MB saved (35%)`."""
    before, after = status["inputBytes"], status["outputBytes"]
    if not before:
        return ""
    return f"{(before - after) / 1e6:.1f} of {before / 1e6:.1f} MB saved ({(before - after) * 100 // before}%)"


def summary(status: dict[str, Any]) -> str:
    """One-line result of a request."""
    text = f"{status['succeeded']} of {status['total']} images compressed, {status['failed']} failed"
    return ", ".join(filter(None, (text, saved(status))))


def stats_table(stats: dict[str, Any]) -> Iterator[str]:
    """Table of the days with requests, newest first, and of their sums; sizes in MB."""
    yield f"{'day':<10}  {'requests':>8}  {'images':>9}  {'failed':>7}  saved"
    for sums in [*(day for day in reversed(stats["days"]) if day["requests"]), {**stats, "day": "sum"}]:
        line = f"{sums['day']:<10}  {sums['requests']:>8,}  {sums['images']:>9,}  {sums['failed']:>7,}  {saved(sums)}"
        yield line.rstrip()


def clock(seconds: float) -> str:
    """Format a duration as ``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def printable(text: str, max_chars: int = 300) -> str:
    """Sanitise untrusted text for a terminal: one line, control characters escaped, truncated to ``max_chars``."""
    shown = "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
    return shown if len(shown) <= max_chars else shown[: max_chars - 1] + "…"
