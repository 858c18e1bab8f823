"""What a user can understand and mend, and how a command ends."""

from collections.abc import Sequence

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
EXIT_INTERRUPTED = 130
"""Ctrl-C, as shells say it (128 + SIGINT)."""


class ExplainedError(Exception):
    """Its message says all there is to say, in one line: the command line prints it without a traceback."""

    exit_code: int = EXIT_FAILED
    details: Sequence[str] = ()
    """Where one line can't have it all: more of them."""
