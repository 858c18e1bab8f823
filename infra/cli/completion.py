"""``shrinkstream completion``: shell completion scripts."""

import click
from click.shell_completion import get_completion_class

PROGRAM = "shrinkstream"
VARIABLE = "_SHRINKSTREAM_COMPLETE"  # click's convention: _<PROGRAM>_COMPLETE


def completion_script(root: click.Command, shell: str) -> str:
    """The completion script for ``bash``, ``zsh`` or ``fish``."""
    kind = get_completion_class(shell)
    assert kind is not None, shell
    return kind(root, {}, PROGRAM, VARIABLE).source()
