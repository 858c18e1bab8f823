"""The drill's faults: a plan that a seed repeats, and a proxy that cuts off one client."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from infra.devserver.ports import LOOPBACK
from infra.faust.app import SESSION_TIMEOUT
from tests.drill.drill import CLOCK
from tests.drill.faults import Kind, plan, processes_of
from tests.drill.servers import Cut, CutProxy
from tests.support.markdown import ROOT

SECONDS = (5.0, 60.0)
WAIT = 60.0


def test_a_seed_repeats_its_plan_with_each_kind() -> None:
    faults = plan(1, 2 * len(Kind), SECONDS, Kind)
    assert faults == plan(1, 2 * len(Kind), SECONDS, Kind) != plan(2, 2 * len(Kind), SECONDS, Kind)
    assert [sum(fault.kind is kind for fault in faults) for kind in Kind] == [2] * len(Kind)
    assert {fault.target for fault in faults if fault.kind is Kind.HALF_CASSANDRA} <= {"api", "projections"}
    assert all(fault.seconds > SESSION_TIMEOUT for fault in faults if fault.kind is Kind.EXPEL)
    assert all((fault.kind is Kind.CLOCK) == (fault.ahead in (-60.0, 60.0)) for fault in faults)


def test_faults_strike_no_other_system(tmp_path: Path) -> None:
    ours, other = (
        subprocess.Popen(
            [sys.executable, "-c", "input()", "worker", "progress"],
            stdin=subprocess.PIPE,
            env={"SHRINKSTREAM_DATA_DIR": str(tmp_path / name / "system")},
        )
        for name in ("ours", "other")
    )
    try:
        assert [process.pid for process in processes_of("progress", tmp_path / "ours")] == [ours.pid]
    finally:
        for process in (ours, other):
            process.kill()
            process.wait(WAIT)


SHOW_CLOCKS = """
import os, sys, time
from streams.events.base import utc_now

for line in sys.stdin:
    time.sleep(float(line))
    print(os.getpid(), time.time(), time.time_ns() / 1e9, utc_now().timestamp(), time.monotonic(), flush=True)
"""


def test_drill_sets_clock_of_one_process(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(CLOCK), "DRILL_CLOCKS": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", SHOW_CLOCKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:

        def clocks(after: float) -> tuple[str, list[float]]:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{after}\n")
            process.stdin.flush()
            pid, *times = process.stdout.readline().split()
            return pid, [float(each) for each in times]

        pid, right = clocks(0)
        (tmp_path / "1").write_text("-3600")  # another process
        (tmp_path / pid).write_text("3600")
        _, ahead = clocks(0.2)  # the file is read ten times a second
        (tmp_path / pid).unlink()
        _, again = clocks(0.2)
        process.stdin.close()  # type: ignore[union-attr]  # a pipe
    for place in range(3):
        assert 3600 <= ahead[place] - right[place] < 5000
        assert -100 < again[place] - right[place] < 1000
    assert ahead[3] - right[3] < 1000


def test_streams_and_api_ask_one_clock() -> None:
    asked = re.compile(r"datetime\.(now|today|utcnow)\(|clock_gettime\(CLOCK_REALTIME|\bgmtime\(\)")
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for room in ("streams", "api")
        for path in sorted((ROOT / room).rglob("*.py"))
        for line in path.read_text().splitlines()
        if asked.search(line)
    ]
    assert found == []


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(line)
    writer.close()


class _Client:
    """A connection through the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def of(cls, proxy: CutProxy) -> "_Client":
        return cls(*await asyncio.open_connection(LOOPBACK, proxy.port))

    @property
    def port(self) -> int:
        port: int = self.writer.get_extra_info("sockname")[1]
        return port

    async def asks(self, line: bytes, timeout: float = WAIT) -> bytes:
        """The answer; empty if the connection was closed or reset."""
        self.writer.write(line + b"\n")
        try:
            async with asyncio.timeout(timeout):
                return (await self.reader.readline()).strip()
        except ConnectionError:
            return b""


@pytest.mark.parametrize("how", list(Cut))
async def test_proxy_cuts_off_one_client_only(how: Cut) -> None:
    server = await asyncio.start_server(_echo, LOOPBACK, 0)
    proxy = CutProxy(lambda: server.sockets[0].getsockname()[:2])
    await proxy.open()
    try:
        other, cut = await _Client.of(proxy), await _Client.of(proxy)
        assert (await other.asks(b"1"), await cut.asks(b"1")) == (b"1", b"1")
        ports = {cut.port}
        await proxy.cut(how, lambda: ports)
        if how is Cut.BROKEN:
            assert await cut.asks(b"lost") == b""
        else:
            with pytest.raises(TimeoutError):
                await cut.asks(b"lost", timeout=0.2)
        assert await other.asks(b"2") == b"2"
        await proxy.restore()
        assert await cut.asks(b"3") == b"", "a connection that lost bytes goes on"
        assert await (await _Client.of(proxy)).asks(b"4") == b"4"
    finally:
        await proxy.close()
        server.close()
