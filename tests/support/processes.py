"""Processes that tests start."""

import os
import sys

from infra.devserver.process import LEASH


def leashed() -> list[str]:
    """The command of a Python that ends with this process, also when a test run is killed; its arguments follow."""
    return [sys.executable, "-I", "-S", str(LEASH), str(os.getpid()), sys.executable]
