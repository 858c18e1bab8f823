"""Kafka and Cassandra of a test run: one process starts them on demand, every worker process shares them.

An embedded server ends with the thread that started it, so this thread must outlive the workers: it belongs to the
process that controls the run (which is also the only one, without ``-n``).
"""

import asyncio
import json
import os
import socket
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from infra.devserver.cassandra import EmbeddedCassandra
from infra.devserver.kafka import EmbeddedKafka
from infra.devserver.ports import LOOPBACK
from infra.devserver.server import EmbeddedServer

VARIABLE = "TEST_SERVERS"  # tells the workers the port on which the controlling process answers
START_SECONDS = 240.0
STOP_SECONDS = 60.0


class SharedCassandra(EmbeddedCassandra):
    """Never started again on its data: so no schema change waits until the tables of the schema are on disk."""

    async def prepare(self) -> list[str]:
        return ["-Dcassandra.unsafesystem=true", *await super().prepare()]


KINDS: dict[str, type[EmbeddedServer]] = {"kafka": EmbeddedKafka, "cassandra": SharedCassandra}


def shared_servers(names: Sequence[str], folder: Path) -> dict[str, str]:
    """``host:port`` by name of these servers, started side by side in ``folder`` unless they run.

    OSError or ValueError when one can't be started; the log of the controlling process says why.
    """
    with ExitStack() as stack:
        link = stack.enter_context(socket.create_connection((LOOPBACK, int(os.environ[VARIABLE])), START_SECONDS))
        stream = stack.enter_context(link.makefile("rw"))
        stream.write(json.dumps({"names": list(names), "folder": str(folder)}) + "\n")
        stream.flush()
        answer: dict[str, str] = json.loads(stream.readline())
    if "error" in answer:
        raise OSError(answer["error"])
    return answer


class ServerHost:
    """Holds the servers; answers :func:`shared_servers` of this process and its children."""

    def __init__(self) -> None:
        self._servers: dict[str, EmbeddedServer] = {}
        self._starts: dict[str, asyncio.Task[None]] = {}
        self._loop = asyncio.new_event_loop()
        # A daemon: a controlling process that is told to end at once does so, and its servers with it.
        self._thread = threading.Thread(target=self._loop.run_forever, name="servers", daemon=True)

    def listen(self) -> None:
        """Answer from now on; starts no server yet."""
        self._thread.start()
        os.environ[VARIABLE] = str(asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(STOP_SECONDS))

    async def _listen(self) -> int:
        listener = await asyncio.start_server(self._answer, LOOPBACK, 0)
        port: int = listener.sockets[0].getsockname()[1]
        return port

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        question = json.loads(await reader.readline())
        try:
            answer = await self._addresses(question["names"], Path(question["folder"]))
        except Exception as error:  # noqa: BLE001 - the test that asked fails with it
            answer = {"error": f"{type(error).__name__}: {error}"}
        writer.write(json.dumps(answer).encode() + b"\n")
        writer.close()

    async def _addresses(self, names: Sequence[str], folder: Path) -> dict[str, str]:
        for name in names:
            if name not in self._starts:
                self._servers[name] = KINDS[name](folder)
                self._starts[name] = asyncio.create_task(self._servers[name].start())
        await asyncio.gather(*(self._starts[name] for name in names))
        return {name: self._servers[name].address for name in names}

    def close(self) -> None:
        """Kill the servers: nobody reads their data again."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(STOP_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_SECONDS)

    async def _stop(self) -> None:
        for name, start in self._starts.items():
            start.cancel()
            await asyncio.wait([start])
            if not start.cancelled() and start.exception() is None:
                await self._servers[name].process.stop(0)
