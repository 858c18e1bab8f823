"""Run a command that is killed when its parent dies, however the parent dies.

Usage: ``python -I -S leash.py PARENT_PID COMMAND [ARGUMENT…]``; standard library only, started by
:class:`infra.devserver.process.ChildProcess` and nothing else.

On Linux the kernel does it: PR_SET_PDEATHSIG (prctl(2)) survives exec, so this program execs the command
and no process is added. Elsewhere it stays as the command's parent, polls for being orphaned, and kills the command.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import NoReturn

PR_SET_PDEATHSIG = 1
POLL_SECONDS = 0.2
CANNOT_EXECUTE = 127  # the shell's exit status for it


def become(parent: int, command: Sequence[str]) -> NoReturn:
    """Exec the command; the kernel kills it when the parent's *thread* ends (Linux)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before prctl
        sys.exit(CANNOT_EXECUTE)
    # Python ignores these two, and an ignored signal stays ignored across exec.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    os.execvp(command[0], list(command))  # noqa: S606 - no shell is wanted


def watch(parent: int, command: Sequence[str]) -> int:
    """Run the command, forward SIGTERM, kill it when the parent is dead; its exit status (any POSIX system)."""
    signals: list[int] = []
    # Before the command starts: SIGTERM would end this process, and orphan the command.
    signal.signal(signal.SIGTERM, lambda signum, _frame: signals.append(signum))
    # close_fds would close the lock that the command must hold.
    child = subprocess.Popen(command, close_fds=False)  # noqa: S603 - our own command line
    while True:
        try:
            status = child.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            if os.getppid() != parent:
                child.kill()
            while signals:
                child.send_signal(signals.pop())
        else:
            return status if status >= 0 else 128 - status


def main(arguments: Sequence[str]) -> int:
    parent, command = int(arguments[0]), arguments[1:]
    try:
        if sys.platform == "linux":
            become(parent, command)
        return watch(parent, command)
    except OSError as error:
        sys.stderr.write(f"cannot run {command[0]}: {error.strerror}\n")
        return CANNOT_EXECUTE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
