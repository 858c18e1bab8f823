"""Start and stop of several embedded servers together."""

import asyncio
from collections.abc import Sequence
from typing import Self

from infra.devserver.server import EmbeddedServer


class EmbeddedServers:
    """Servers that start concurrently and stop in reverse order; either all of them run, or none.

    ``async with EmbeddedServers(EmbeddedKafka(data_dir), EmbeddedCassandra(data_dir)):``
    """

    def __init__(self, *servers: EmbeddedServer) -> None:
        self._servers: Sequence[EmbeddedServer] = servers

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Return when all are ready. If one can't start, stop the others and raise its error."""
        try:
            async with asyncio.TaskGroup() as starts:  # the first failure cancels the other starts
                for server in self._servers:
                    starts.create_task(server.start())
        except BaseException as error:
            await self.stop()
            if isinstance(error, BaseExceptionGroup):
                raise error.exceptions[0] from None
            raise

    async def stop(self) -> None:
        """Stop the running servers in reverse order; safe to call at any time."""
        for server in reversed(self._servers):
            await server.stop()
