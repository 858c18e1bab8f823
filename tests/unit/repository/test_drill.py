"""The drill's faults: a plan that a seed repeats, and a proxy that cuts off one client."""

import asyncio

import pytest

from infra.devserver.ports import LOOPBACK
from tests.drill.faults import Kind, plan
from tests.drill.servers import Cut, CutProxy

SECONDS = (5.0, 60.0)
WAIT = 10.0


def test_a_seed_repeats_its_plan_with_each_kind() -> None:
    faults = plan(1, 2 * len(Kind), SECONDS, Kind)
    assert faults == plan(1, 2 * len(Kind), SECONDS, Kind) != plan(2, 2 * len(Kind), SECONDS, Kind)
    assert [sum(fault.kind is kind for fault in faults) for kind in Kind] == [2] * len(Kind)
    assert {fault.target for fault in faults if fault.kind is Kind.HALF_CASSANDRA} <= {"api", "projections"}


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
            return (await asyncio.wait_for(self.reader.readline(), timeout)).strip()
        except ConnectionError:
            return b""


@pytest.mark.parametrize("how", list(Cut))
async def test_proxy_cuts_off_one_client_only(how: Cut) -> None:
    server = await asyncio.start_server(_echo, LOOPBACK, 0)
    proxy = CutProxy(lambda: server.sockets[0].getsockname()[1])
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
