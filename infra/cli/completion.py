"""``shrinkstream completion``: what a shell has to read to complete our commands."""

import click
from click.shell_completion import get_completion_class

PROGRAM = "shrinkstream"
VARIABLE = "_SHRINKSTREAM_COMPLETE"  # click's own rule: _<PROGRAM>_COMPLETE


def completion_script(root: click.Command, shell: str) -> str:
    """The script for ``bash``, ``zsh`` or ``fish``."""
    kind = get_completion_class(shell)
    assert kind is not None, shell
    return kind(root, {}, PROGRAM, VARIABLE).source()
