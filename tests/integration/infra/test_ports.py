"""Free ports, of which several processes choose at once."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from infra.devserver import ports
from infra.devserver.ports import free_ports, is_free, remembered_ports

TAKE = """
import sys
from infra.devserver import ports
ports.CANDIDATES = range(int(sys.argv[1]), int(sys.argv[2]))
print(next(ports.free_ports()), flush=True)
sys.stdin.read()
"""


def test_port_is_given_to_one_process_only(monkeypatch: pytest.MonkeyPatch) -> None:
    first = next(port for port in free_ports() if is_free(port + 1))
    two = range(first, first + 2)
    monkeypatch.setattr(ports, "CANDIDATES", two)
    take = [sys.executable, "-c", TAKE, str(two.start), str(two.stop)]
    other = subprocess.Popen(take, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with other:
        assert other.stdout is not None
        assert int(other.stdout.readline()) == two[1], "the first is this process's"
        assert list(free_ports()) == []
        other.kill()
    assert next(free_ports()) == two[1], "the other process ended"


def test_ports_stay_the_same_while_they_are_free(tmp_path: Path) -> None:
    file = tmp_path / "ports.json"
    given = remembered_ports(file, ["client", "storage"])
    assert given["client"] != given["storage"]
    assert remembered_ports(file, ["client", "storage"]) == given
    with socket.create_server((ports.LOOPBACK, given["client"])):
        again = remembered_ports(file, ["client", "storage"])
    assert again["storage"] == given["storage"]
    assert again["client"] not in given.values()
