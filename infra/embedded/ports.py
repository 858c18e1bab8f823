"""Free loopback ports that stay the same across restarts."""

import contextlib
import json
import random
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

LOOPBACK = "127.0.0.1"

# Below what systems hand out to outgoing connections (Linux from 32768, macOS and IANA from 49152): while a
# server restarts, a client's retries could otherwise be given that very port and connect to themselves.
CANDIDATES = range(20_000, 32_768)
ATTEMPTS = 200


def is_free(port: int) -> bool:
    """Could a server listen on this loopback port now?"""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: TIME_WAIT doesn't count
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def free_ports() -> Iterator[int]:
    """Loopback ports that a server could listen on now, in random order."""
    for port in random.sample(CANDIDATES, ATTEMPTS):
        if is_free(port):
            yield port


def remembered_ports(path: Path, names: Sequence[str]) -> dict[str, int]:
    """A free port for each name: those that ``path`` remembers where still free, else new ones, remembered."""
    remembered: dict[str, int] = {}
    with contextlib.suppress(FileNotFoundError, ValueError):
        remembered = json.loads(path.read_text())
    unused = (port for port in free_ports() if port not in remembered.values())
    ports = {
        name: remembered[name] if name in remembered and is_free(remembered[name]) else next(unused) for name in names
    }
    path.write_text(json.dumps(ports) + "\n")
    return ports
