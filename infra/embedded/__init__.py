"""Kafka and Cassandra as child processes of this one, from nothing but Python packages and Maven jars."""

import asyncio
from collections.abc import Sequence
from typing import Self

from infra.embedded.server import EmbeddedServer, EmbeddedServerError

__all__ = ["EmbeddedServer", "EmbeddedServerError", "EmbeddedServers"]


class EmbeddedServers:
    """Servers that start side by side and stop in reverse order; all of them run, or none.

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
        """Return once all answer. When one can't start, the others are stopped and its error is raised."""
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
        """Stop those that run, last named first; safe to call at any time."""
        for server in reversed(self._servers):
            await server.stop()
