"""Readiness of all processes during a drill: what was away when, and when it came back."""

import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import NamedTuple, Self
from urllib.error import URLError
from urllib.request import urlopen

POLL_SECONDS = 0.5
ANSWER_SECONDS = 3.0
END_SECONDS = 30.0


class Outage(NamedTuple):
    """A time in which a process was not ready, in seconds since the start; ``until`` None: it still isn't."""

    name: str
    since: float
    until: float | None

    def __str__(self) -> str:
        return f"{self.name} {self.since:.0f} to {'the end' if self.until is None else f'{self.until:.0f}'} s"


class Watch:
    """Asks the ``/readyz`` of each process, in a thread each."""

    def __init__(self, addresses: Mapping[str, str]) -> None:
        """``addresses``: host:port by name."""
        self._started = time.monotonic()
        # Until it is ready for the first time, a process is away.
        self._outages = {name: [Outage(name, 0.0, None)] for name in addresses}
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._follow, args=each, name=f"watch {each[0]}", daemon=True)
            for each in addresses.items()
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(END_SECONDS)

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    @property
    def not_ready(self) -> list[str]:
        return [name for name, outages in self._outages.items() if outages and outages[-1].until is None]

    def outages(self, since: float, until: float) -> list[Outage]:
        """The outages that began in a time, in their order."""
        found = (each for outages in self._outages.values() for each in list(outages) if since <= each.since < until)
        return sorted(found, key=lambda outage: outage.since)

    def _follow(self, name: str, address: str) -> None:
        outages = self._outages[name]
        while not self._stop.wait(POLL_SECONDS):
            asked = self.now
            is_away = bool(outages) and outages[-1].until is None
            if _is_ready(address):
                if is_away:
                    outages[-1] = outages[-1]._replace(until=self.now)
            elif not is_away:
                outages.append(Outage(name, asked, None))


def _is_ready(address: str) -> bool:
    try:
        with urlopen(f"http://{address}/readyz", timeout=ANSWER_SECONDS) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False
