"""Errors with a message for users, exit codes, and the immediate end of a process."""

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

EXIT_FAILED = 1
"""The command failed; standard error says why in one line."""
EXIT_USAGE = 2
"""The command line itself is wrong."""
EXIT_REFUSED = 3
"""The server refused: a CSV with bad rows, a wrong key, an unknown request, a conflict with the request's status."""
EXIT_IMAGES_FAILED = 4
"""The request ended, and some of its images failed."""
EXIT_STOPPED = 5
"""The watched request was cancelled, or its files have expired."""
EXIT_UNAVAILABLE = 69
"""A worker lacks Kafka, a topic, Cassandra, its tables, the storage or its port (EX_UNAVAILABLE of sysexits.h)."""
EXIT_FATAL = 70
"""Continuing could lose an event (EX_SOFTWARE of sysexits.h): a supervisor restarts the worker."""
EXIT_INTERRUPTED = 130
"""Ctrl-C, by the convention of shells (128 + SIGINT)."""


class ExplainedError(Exception):
    """An error whose one-line message explains it to a user: the command line prints it without a traceback."""

    exit_code: int = EXIT_FAILED
    details: Sequence[str] = ()
    """Further lines, such as one per bad row."""


logger = logging.getLogger(__name__)


def leave(code: int) -> NoReturn:
    """Exit with ``code``, without finalizing Python: the threads of obstore would abort it.

    A thread of Rust that asks for the interpreter's lock meanwhile raises SIGABRT in Python before 3.14
    (https://github.com/PyO3/pyo3/pull/4874). A standard output that can't be written makes the code ``EXIT_FAILED``.
    """
    logging.shutdown()
    try:
        sys.stdout.flush()
    except OSError as error:
        code = code or EXIT_FAILED
        if not isinstance(error, BrokenPipeError):
            sys.stderr.write(f"shrinkstream: cannot write to standard output: {error.strerror}\n")
    with suppress(OSError):
        sys.stderr.flush()
    os._exit(code)


def end_process(reason: str, code: int = EXIT_FATAL, *, error: BaseException | None = None) -> NoReturn:
    """Log ``reason`` and exit at once: no handler, no ``finally`` and so no offset commit runs."""
    logger.critical("%s", reason, exc_info=error)
    leave(code)
