"""Circuit breakers per image host: a dead host's images fail fast, but not in an outage of our own network."""

import asyncio
import contextlib
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from infra.outbound.reasons import Reason
from streams.compress.fetch import Fetched, FetchFailed

logger = structlog.get_logger(__name__)

HOST_UNAVAILABLE = "fetch_host_unavailable"

UNREACHABLE = frozenset({Reason.TIMEOUT, Reason.CONNECT_FAILED, Reason.DNS_FAILED})
"""Reasons that count towards opening a circuit, if transient. Any other result is a response, which closes it."""
NOT_REQUESTED = frozenset(
    {Reason.BAD_URL, Reason.FORBIDDEN_SCHEME, Reason.FORBIDDEN_PORT, Reason.FORBIDDEN_ADDRESS, Reason.DNS_FAILED}
)
"""Reasons that don't depend on the host: no request was sent."""

MAX_FAILURES = 8
"""Consecutive unreachable downloads after which a host's circuit may open: as many as run at a host by default."""
MIN_FAILING = 10.0
"""Minimum time (s) a host is unreachable before its circuit opens: a server that restarts is not a dead host."""
FIRST_PAUSE = 15.0
"""Seconds between two probes of a host whose circuit is open; doubled after each up to `MAX_PAUSE`."""
MAX_PAUSE = 120.0
OUTAGE_HOSTS = 3
"""Number of hosts that are unreachable at once, while no other responds, from which our own network is suspected."""
OUTAGE_PROBE = 10.0
"""Seconds between two downloads of an image in an outage."""
OUTAGE_LIMIT = 300.0
"""Maximum time (s) an image waits for the end of an outage; then its failure counts, as the hosts may all be dead."""
MAX_HOSTS = 10_000
"""Maximum number of unreachable hosts that are tracked."""


@dataclass
class _Circuit:
    """Circuit of a host without a response since ``failing_since``; open from ``opened_at`` until the next probe."""

    failing_since: float
    failures: int = 0
    pause: float = FIRST_PAUSE
    opened_at: float | None = None
    probe_at: float = 0.0


class CircuitBreaker:
    """The circuits of one worker, by owner and host: no tenant can open another's. A host that responds has none.

    A host is ``name:port``.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._circuits: OrderedDict[tuple[str, str], _Circuit] = OrderedDict()
        self._in_flight: Counter[str] = Counter()
        self._unreachable: set[str] = set()  # since the last response of any host
        self._response = asyncio.Event()  # replaced at each response
        self._outage_logged = False

    @property
    def open_circuits(self) -> int:
        return sum(circuit.opened_at is not None for circuit in self._circuits.values())

    def is_open(self, owner: str, host: str) -> bool:
        """Whether a download from ``host`` would fail at once."""
        circuit = self._circuits.get((owner, host))
        return circuit is not None and circuit.opened_at is not None and circuit.probe_at > self._clock()

    async def download(self, owner: str, host: str, fetch: Callable[[], Awaitable[Fetched]]) -> Fetched:
        """The result of ``fetch``, a download from ``host``. Raises FetchFailed; if the circuit is open, at once.

        In an outage of our own network it waits and repeats the download, for up to `OUTAGE_LIMIT` seconds.
        """
        waiting_since: float | None = None
        while True:
            started, response = self._clock(), self._response
            self._admit(owner, host)
            self._in_flight[host] += 1
            try:
                fetched = await fetch()
            except FetchFailed as failure:
                if failure.transient and failure.reason in UNREACHABLE:
                    if self._is_outage(host, response, is_first=waiting_since is None) and (
                        self._clock() - (waiting_since or started) < OUTAGE_LIMIT
                    ):
                        waiting_since = waiting_since or started
                        self._end_probe(owner, host)
                        with contextlib.suppress(TimeoutError):
                            async with asyncio.timeout(OUTAGE_PROBE):
                                await self._response.wait()
                        continue
                    self._note_failure(owner, host, started)
                elif failure.reason in NOT_REQUESTED:
                    self._end_probe(owner, host)
                else:
                    self._note_response(owner, host)
                raise
            except BaseException:
                self._end_probe(owner, host)
                raise
            finally:
                self._in_flight[host] -= 1
                if not self._in_flight[host]:
                    del self._in_flight[host]
            self._note_response(owner, host)
            return fetched

    def _admit(self, owner: str, host: str) -> None:
        circuit = self._circuits.get((owner, host))
        if circuit is None or circuit.opened_at is None:
            return
        now = self._clock()
        if circuit.probe_at > now:
            raise FetchFailed(
                HOST_UNAVAILABLE, f"{host} has been unreachable for {now - circuit.failing_since:.0f} s; retry later"
            )
        circuit.probe_at = now + circuit.pause  # this download is the probe; others fail meanwhile

    def _end_probe(self, owner: str, host: str) -> None:
        """If this download was the probe, it had no result: the next download is a probe again."""
        if (circuit := self._circuits.get((owner, host))) is not None:
            circuit.probe_at = min(circuit.probe_at, self._clock())

    def _is_outage(self, host: str, response: asyncio.Event, *, is_first: bool) -> bool:
        """Whether our own network seems to be down: no host has responded since the download began.

        The first downloads that fail in an outage can't know about the others yet: they are repeated once.
        """
        self._unreachable.add(host)
        names = {
            each.rpartition(":")[0] for each in self._unreachable | (self._in_flight.keys() if is_first else set())
        }
        if response.is_set() or len(names) < OUTAGE_HOSTS:
            return False
        if not self._outage_logged:
            self._outage_logged = True
            logger.warning("network outage suspected: downloads are repeated", hosts=sorted(names)[:10])
        return True

    def _note_response(self, owner: str, host: str) -> None:
        circuit = self._circuits.pop((owner, host), None)
        if circuit is not None and circuit.opened_at is not None:
            logger.info("circuit closed", host=host)
        self._unreachable.clear()
        self._outage_logged = False
        self._response.set()
        self._response = asyncio.Event()

    def _note_failure(self, owner: str, host: str, started: float) -> None:
        now = self._clock()
        circuit = self._circuits.setdefault((owner, host), _Circuit(failing_since=started))
        self._circuits.move_to_end((owner, host))
        circuit.failures += 1
        if circuit.opened_at is None:
            if circuit.failures >= MAX_FAILURES and now - circuit.failing_since >= MIN_FAILING:
                circuit.opened_at, circuit.probe_at = now, now + circuit.pause
                logger.warning("circuit opened", host=host, failures=circuit.failures)
        elif started >= circuit.opened_at:  # a probe, not a download that began before
            circuit.pause = min(2 * circuit.pause, MAX_PAUSE)
            circuit.opened_at, circuit.probe_at = now, now + circuit.pause
        while len(self._circuits) > MAX_HOSTS:
            self._circuits.popitem(last=False)
