"""A Kafka that a test may stop for a while, as a paused virtual machine or a cut network does."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from infra.devserver import EmbeddedServer


@contextmanager
def paused(server: EmbeddedServer) -> Iterator[None]:
    """SIGSTOP for as long as the context lasts: connections stay open, nothing is answered, then all is handled."""
    os.killpg(server.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(server.process.pid, signal.SIGCONT)
