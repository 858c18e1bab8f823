"""How the suite is run: order, groups of tests for the workers of pytest-xdist, time limits, summary."""

import faulthandler
import itertools
import os
import random
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import Generator
from types import FrameType

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests.support.servers import ServerHost

RUN_SECONDS = 2700  # a run on several workers; far more than it needs, and less than what CI allows
TEST_SECONDS = 900  # fixtures included; the slowest test needs a tenth of it on a quiet machine
OWN_SERVERS = ("atomic_upload", "cluster", "demo", "documented_commands", "drill", "healing", "lifecycle")
_host = pytest.StashKey[ServerHost]()


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # a worker, not the process that controls the run
        return
    os.environ.setdefault("TEST_SEED", str(random.randrange(10**6)))  # workers inherit it
    config.stash[_host] = ServerHost()
    config.stash[_host].listen()
    if _has_workers(config):
        faulthandler.dump_traceback_later(RUN_SECONDS, exit=True, file=os.dup(sys.stderr.fileno()))


def pytest_unconfigure(config: pytest.Config) -> None:
    if _host in config.stash:
        config.stash[_host].close()


def _has_workers(config: pytest.Config) -> bool:
    return bool(config.getoption("numprocesses", None)) or hasattr(config, "workerinput")


def pytest_report_header(config: pytest.Config) -> str | None:
    return f"order: TEST_SEED={os.environ['TEST_SEED']}" if _has_workers(config) else None


class Groups(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Hands groups of tests to workers in the order of the collection.

    In a group are the tests of a file, all those that share a running API, and half of those that share a running
    system each: one system would take too long, and more would cost too much. A unit test is a group by itself.
    """

    def __init__(self, config: pytest.Config, log: Producer) -> None:
        super().__init__(config, log)
        self._systems: dict[str, int] = {}

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        if "/unit/" in path:
            return nodeid
        if "/integration/api/running/" in path:
            return "api"
        if _has_system(path):
            return f"system {self._systems.setdefault(path, len(self._systems) % 2)}"
        return path


@pytest.hookimpl(optionalhook=True)  # without the plugin there is no such hook
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Groups:
    return Groups(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files in random order, and their tests; the slow ones first, so that no worker is left with one at the end."""
    if not _has_workers(config):
        return
    shuffled = random.Random(os.environ["TEST_SEED"])
    shuffled.shuffle(items)  # sorting keeps this order within a file
    files = list(dict.fromkeys(item.path for item in items))

    def place(item: pytest.Item) -> tuple[str, bool, bool, int]:
        is_quick_unit = _tier(item.nodeid) == "unit" and item.get_closest_marker("slow") is None
        return _tier(item.nodeid), not _has_system(item.nodeid), is_quick_unit, files.index(item.path)

    items.sort(key=place)


def _tier(nodeid: str) -> str:
    """The folder below ``tests``: e2e, integration or unit."""
    return nodeid.split("/")[1]


def _has_system(nodeid: str) -> bool:
    return "/e2e/" in nodeid and not any(f"/test_{name}.py" in nodeid for name in OWN_SERVERS)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """A test that hangs fails, with the stacks of all threads, and the run goes on."""

    def give_up(_signum: int, _frame: FrameType | None) -> None:
        faulthandler.dump_traceback(sys.stderr.fileno())
        pytest.fail(f"the test took longer than {TEST_SECONDS} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(TEST_SECONDS)
    try:
        return (yield)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Seconds by tier: of all workers together, fixtures included."""
    seconds: dict[str, float] = defaultdict(float)
    tests: Counter[str] = Counter()
    for report in itertools.chain.from_iterable(terminalreporter.stats.values()):
        if isinstance(report, pytest.TestReport):
            seconds[_tier(report.nodeid)] += report.duration
            tests[_tier(report.nodeid)] += report.when == "call"
    terminalreporter.section("time by tier")
    for tier, total in seconds.items():
        terminalreporter.line(f"{tier}: {tests[tier]} tests, {total:.0f} s of the workers' time")
