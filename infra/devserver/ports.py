"""Free ports: each is given to one process of this machine only, and stays the same across restarts."""

import contextlib
import fcntl
import json
import os
import random
import socket
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import BinaryIO

LOOPBACK = "127.0.0.1"

# Below the ephemeral ports (Linux from 32768, macOS and IANA from 49152): while a server restarts, a client's
# retry could otherwise get the server's port as its own and connect to itself.
CANDIDATES = range(20_000, 32_768)
ATTEMPTS = 200


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Could a server listen on this port now?"""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: TIME_WAIT doesn't count
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def free_ports(host: str = LOOPBACK) -> Iterator[int]:
    """Ports that a server could listen on now, in random order, and that no other process is given meanwhile.

    They stay this process's until it ends: a server listens seconds after its port was chosen.
    """
    for port in random.sample(CANDIDATES, min(ATTEMPTS, len(CANDIDATES))):
        if port not in _given and is_free(port, host) and _reserve(port):
            yield port


_given: set[int] = set()


def _reserve(port: int) -> bool:
    try:
        fcntl.lockf(_reservations(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    _given.add(port)
    return True


@cache  # once: closing any file object of it would give up all of the process's locks (POSIX)
def _reservations() -> BinaryIO:
    """A file whose n-th byte is locked by the process that was given the n-th port."""
    return (Path(tempfile.gettempdir()) / f"shrinkstream-ports-{os.getuid()}").open("ab")


def remembered_ports(path: Path, names: Sequence[str]) -> dict[str, int]:
    """A free port for each name: the one stored in ``path`` if it is still free, else a new one, which is stored."""
    remembered: dict[str, int] = {}
    with contextlib.suppress(FileNotFoundError, ValueError):
        remembered = json.loads(path.read_text())
    unused = (port for port in free_ports() if port not in remembered.values())
    ports = {}
    for name in names:
        port = remembered.get(name)
        ports[name] = port if port and is_free(port) and _reserve(port) else next(unused)
    path.write_text(json.dumps(ports) + "\n")
    return ports
