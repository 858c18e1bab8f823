"""What goes to the terminal: figures of a request, and texts that come from elsewhere."""

from collections import deque
from typing import Any

PACE_SECONDS = 30.0  # over which images per second are counted


class Pace:
    """Images per second over the last half minute, from how many were done at some times."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, now: float, done: int) -> None:
        """``now``: seconds, never less than before. Fewer than before: a retry began, and so does the counting."""
        if self._seen and done < self._seen[-1][1]:
            self._seen.clear()
        self._seen.append((now, done))
        # The last one that is older stays: what was done since counts.
        while len(self._seen) > 2 and self._seen[1][0] <= now - PACE_SECONDS:
            self._seen.popleft()

    def per_second(self, now: float) -> float | None:
        """None: nothing was done yet that could be counted."""
        if not self._seen:
            return None
        (began, first), (_, last) = self._seen[0], self._seen[-1]
        return (last - first) / (now - began) if last > first and now > began else None

    def seconds_left(self, now: float, waiting: int) -> float | None:
        rate = self.per_second(now)
        return None if rate is None else waiting / rate


def details(status: dict[str, Any], pace: Pace, now: float) -> str:
    """What is told beside the count of images: images per second, bytes saved, time left."""
    rate, left = pace.per_second(now), pace.seconds_left(now, status["total"] - settled(status))
    parts = (
        f"{rate:.1f} images/s" if rate else "",
        saved(status),
        f"{clock(left)} left" if left and status["status"] == "processing" else "",
    )
    return ", ".join(filter(None, parts))


def settled(status: dict[str, Any]) -> int:
    """How many images have their result."""
    count: int = status["succeeded"] + status["failed"]
    return count


def saved(status: dict[str, Any]) -> str:
    """How many bytes compressing saved, as in `1.2 of 3.4 MB saved (35%)`."""
    before, after = status["inputBytes"], status["outputBytes"]
    if not before:
        return ""
    return f"{(before - after) / 1e6:.1f} of {before / 1e6:.1f} MB saved ({(before - after) * 100 // before}%)"


def summary(status: dict[str, Any]) -> str:
    """What a request came to, in a line."""
    text = f"{status['succeeded']} of {status['total']} images compressed, {status['failed']} failed"
    return ", ".join(filter(None, (text, saved(status))))


def clock(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def printable(text: str, most: int = 300) -> str:
    """One line of text that does nothing to a terminal, whoever wrote it: control characters are shown as escapes."""
    shown = "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
    return shown if len(shown) <= most else shown[: most - 1] + "…"
