"""``python -m infra.cli`` is ``shrinkstream``."""

from typing import NoReturn

from infra.cli.main import main
from infra.errors import leave


def run() -> NoReturn:
    """Run the command of the command line, and end the process with its exit code."""
    try:
        main()
    except SystemExit as end:  # as click ends each command
        if end.code is None or isinstance(end.code, int):
            leave(end.code or 0)
        raise  # with a message, which Python prints
    raise AssertionError("click ends the process")


if __name__ == "__main__":
    run()
