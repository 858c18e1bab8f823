"""Errors that a user can understand and mend, and how a process ends."""

import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

EXIT_FAILED = 1
"""It could not be done; standard error says why in a line."""
EXIT_USAGE = 2
"""The command line itself is wrong."""
EXIT_REFUSED = 3
"""The server refused: a CSV with bad rows, a wrong key, an unknown request, something that is not possible now."""
EXIT_IMAGES_FAILED = 4
"""The request ended, and some of its images failed."""
EXIT_STOPPED = 5
"""The request that was waited for was cancelled, or its files have expired."""
EXIT_UNAVAILABLE = 69
"""A worker found no broker or no topic at start (EX_UNAVAILABLE of sysexits.h)."""
EXIT_FATAL = 70
"""Going on could lose an event (EX_SOFTWARE of sysexits.h): a supervisor starts the worker again."""
EXIT_INTERRUPTED = 130
"""Ctrl-C, as shells say it (128 + SIGINT)."""


class ExplainedError(Exception):
    """Its message says all there is to say, in one line: the command line prints it without a traceback."""

    exit_code: int = EXIT_FAILED
    details: Sequence[str] = ()
    """Where one line can't have it all: more of them."""


logger = logging.getLogger(__name__)


def end_process(reason: str, code: int = EXIT_FATAL, *, error: BaseException | None = None) -> NoReturn:
    """Log ``reason`` and end at once: no handler, no ``finally`` and so no commit runs any more."""
    logger.critical("%s", reason, exc_info=error)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
