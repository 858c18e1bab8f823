"""A Kafka that a test may stop for a while, as a paused virtual machine or a cut network does."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.devserver.server import EmbeddedServer
from tests.support.waiting import wait_until


@contextmanager
def paused(server: EmbeddedServer) -> Iterator[None]:
    """SIGSTOP for as long as the context lasts: connections stay open, nothing is answered, then all is handled."""
    pid = server.process.pid
    os.killpg(pid, signal.SIGSTOP)
    try:
        # A thread that waits for a core stops only when it gets one.
        wait_until(lambda: _thread_states(pid) == {"T"}, "every thread is stopped")
        yield
    finally:
        os.killpg(pid, signal.SIGCONT)


def _thread_states(pid: int) -> set[str]:
    """State letters of proc(5)."""
    states = (path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat"))
    return {state.rpartition(")")[2].split()[0] for state in states}
