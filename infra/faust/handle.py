"""F3: agents whose failure ends the process; several events of a stream in flight."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, cast

import faust
from faust.streams import Stream
from faust.types import EventT, StreamT

from infra.cancellation import no_stray_cancellation
from infra.errors import end_process
from infra.faust.worker_app import WorkerApp


class GuardedAgent(faust.Agent):
    """F3: an exception that leaves an agent ends the process.

    Trap: Faust restarts the agent and skips the event, also with ``noack`` and with every supervisor
    strategy (agents/agent.py ``_execute_actor``). Upstream: faust-streaming/faust #189, #315, #527.
    """

    async def _execute_actor(self, coro: Awaitable[Any], aref: Any) -> None:
        await super()._execute_actor(self._run_guarded(coro), aref)

    async def _run_guarded(self, coro: Awaitable[Any]) -> None:
        try:
            with no_stray_cancellation():
                await coro
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - the agent must not skip the event, whatever the error
            end_process(f"agent {self.name} failed: {error!r}", error=error)
        if not self.app.should_stop:
            end_process(f"agent {self.name} ended although its stream did not")


Admit = Callable[[EventT[bytes]], AbstractAsyncContextManager[None]]


async def handle(
    stream: StreamT[bytes],
    handler: Callable[[EventT[bytes]], Awaitable[None]],
    *,
    in_flight: int,
    max_seconds: float,
    admit: Admit = lambda _: nullcontext(),
) -> None:
    """Process a stream's events concurrently, up to ``in_flight``; each is acknowledged when its handler returns.

    They may finish in any order: an offset is committed only when all before it are finished. A full window is
    backpressure: nothing is taken from the stream. A handler's exception ends the process (F3). When the stream ends,
    at a stop, the in-flight events have the rest of the drain deadline; then they are cancelled and never
    acknowledged, so they are redelivered. For agents without tables: a table is written by one event at a time.
    ``max_seconds``: maximum duration of one event in seconds; after ``STALL_FACTOR`` times as long the process ends.
    ``admit`` is entered around the handler: an event that waits there has no deadline, and at a rebalance or a stop it
    is given up at once, to be redelivered.
    """
    app = cast("WorkerApp", stream.app)
    source = cast("Stream[bytes]", stream).noack()
    permits = asyncio.Semaphore(in_flight)
    running: set[asyncio.Task[None]] = set()

    async def process(event: EventT[bytes]) -> None:
        message = event.message
        app.waiting[message] = cast("asyncio.Task[None]", asyncio.current_task())
        try:
            with no_stray_cancellation():
                async with admit(event):
                    app.waiting.pop(message, None)
                    app.consumer.note_start(message, max_seconds)
                    await handler(event)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - as in GuardedAgent
            position = f"{event.message.topic}/{event.message.partition} offset {event.message.offset}"
            end_process(f"{app.conf.id} failed at {position}: {error!r}", error=error)
        finally:
            app.waiting.pop(message, None)
        await source.ack(event)

    def on_done(task: asyncio.Task[None]) -> None:
        running.discard(task)
        permits.release()

    events = aiter(source.events())
    try:
        while True:
            await permits.acquire()
            event = await anext(events, None)
            if event is None:
                return
            task = asyncio.create_task(process(event))
            running.add(task)
            task.add_done_callback(on_done)
    finally:
        for waiting in app.waiting.values():
            waiting.cancel()
        if running:
            _, late = await asyncio.wait(set(running), timeout=app.drain_seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
