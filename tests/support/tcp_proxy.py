"""A TCP proxy that a test can close or block, or that breaks up what it passes on."""

import asyncio
import contextlib

APART_SECONDS = 0.01


class TcpProxy:
    """A way to a server that can be shut (connections break) or blocked (nothing passes, nothing breaks).

    ``head``: so many bytes of what arrives together are passed on alone, and the rest a moment later.
    """

    def __init__(self, address: str, *, head: int = 0) -> None:
        host, _, port = address.rpartition(":")
        self._behind = (host, int(port))
        self._head = head
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._free = asyncio.Event()
        self._free.set()
        self.port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def shut(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        self._free.set()

    def block(self) -> None:
        self._free.clear()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind_writer = await asyncio.open_connection(*self._behind)
        self._writers |= {writer, behind_writer}
        await asyncio.gather(self._copy(reader, behind_writer), self._copy(behind_reader, writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                await self._free.wait()
                if self._head:
                    writer.write(data[: self._head])
                    await asyncio.sleep(APART_SECONDS)
                    data = data[self._head :]
                writer.write(data)
                await writer.drain()
        writer.close()
