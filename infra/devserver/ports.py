"""Free ports: reserved by one process at a time, the same across restarts."""

import contextlib
import json
import random
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

LOOPBACK = "127.0.0.1"

# Below the ephemeral ports (Linux from 32768, macOS and IANA from 49152): while a server restarts, a client's
# retry could otherwise get the server's port as its own and connect to itself.
CANDIDATES = range(20_000, 32_768)
ATTEMPTS = 200


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether a server can listen on this port."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: TIME_WAIT doesn't count
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def free_ports(host: str = LOOPBACK) -> Iterator[int]:
    """Ports that a server can listen on, in random order, reserved for this process until it ends.

    A server listens seconds after its port was chosen; until then the port must not be chosen by another process.
    """
    for port in random.sample(CANDIDATES, min(ATTEMPTS, len(CANDIDATES))):
        if port not in _reservations and is_free(port, host) and _reserve(port):
            yield port


_reservations: dict[int, socket.socket] = {}


def _reserve(port: int) -> bool:
    """Reserve a port by a name in Linux's abstract socket namespace, which leaves no file; elsewhere, by nothing."""
    if sys.platform == "linux" and port not in _reservations:
        reservation = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            reservation.bind(f"\0shrinkstream-port-{port}")
        except OSError:
            reservation.close()
            return False
        _reservations[port] = reservation
    return True


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
