"""F1, F3, F4: what leaves the queues, and when an event of a stream is finished."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, cast

from faust.streams import Stream
from faust.types import EventT
from mode.utils.queues import FlowControlEvent

from infra.faust.worker_app import WorkerApp


class GuardedFlowControl(FlowControlEvent):
    """F1: records the events that are discarded from the queues.

    Trap: ``resume()`` clears the queues of all streams (mode/utils/queues.py), including events delivered since
    the seek. Guard: they are marked as dropped, and a delivery past a dropped event ends the process.
    """

    def __init__(self, app: WorkerApp) -> None:
        super().__init__(loop=app.loop)
        self._app = app

    def clear(self) -> None:
        for queue in self._queues:
            for item in queue._queue:  # type: ignore[attr-defined]  # asyncio.Queue's deque
                if isinstance(item, EventT):
                    self._app.consumer.note_dropped(item.message)
        super().clear()


class GuardedStream(Stream):  # type: ignore[type-arg]
    """F3, F4: an event is acknowledged only when the agent requests the next one.

    Trap: Faust also acknowledges an event whose agent raised or was cancelled, as soon as its generator is closed
    (streams.py ``_py_aiter``), and an agent that awaits during its clean-up leaves time to
    commit it. The compiled version (_cython/streams.pyx ``after``) also bypasses ``Consumer.ack``, and only some
    platforms' wheels have it: the Python version always runs here.
    """

    def __aiter__(self) -> Any:
        acknowledge, self.enable_acks = self.enable_acks, False
        values = self._values(acknowledge)
        self._active_agens.add(values)
        return values

    async def _values(self, acknowledge: bool) -> AsyncGenerator[Any, None]:
        async with aclosing(cast("AsyncGenerator[Any, None]", self._py_aiter())) as values:
            async for value in values:
                event = self.current_event
                yield value
                if acknowledge and event is not None:
                    await self.ack(event)
