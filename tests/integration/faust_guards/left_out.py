"""Puts Faust's own code back in place of a guard, so that a test can show what the guard is for."""

import asyncio
from collections.abc import Callable, Iterable, Mapping

from aiokafka import AIOKafkaConsumer
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from faust.transport.producer import ProducerBuffer
from faust.types import TP
from faust.types.tuples import FutureMessage

from infra.faust.consumer import GuardedConsumer
from infra.faust.flow import GuardedFlowControl, GuardedStream
from infra.faust.handle import GuardedAgent
from infra.faust.lease import Lease
from infra.faust.producer import GuardedBuffer, GuardedProducer, GuardedTopic
from infra.faust.tables import GuardedRecovery, GuardedTable

# Faust's fetching and its bookkeeping of offsets hang together: they go back together.
FETCHING_AND_BOOKKEEPING = {
    GuardedConsumer: (
        "_drain_messages",
        "stop_flow",
        "perform_seek",
        "seek_wait",
        "ack",
        "_filter_tps_with_pending_acks",
        "_new_offset",
        "_should_commit",
        "_commit_offsets",
    ),
    GuardedFlowControl: ("clear",),
}

GUARDS: dict[str, list[dict[type, tuple[str, ...]]]] = {
    "F1": [FETCHING_AND_BOOKKEEPING],
    "F2": [
        FETCHING_AND_BOOKKEEPING,
        {GuardedConsumer: ("on_partitions_revoked", "wait_empty")},
    ],
    "F3": [
        FETCHING_AND_BOOKKEEPING,
        {GuardedAgent: ("_execute_actor",), GuardedStream: ("__aiter__",)},
    ],
    "F4": [FETCHING_AND_BOOKKEEPING],
    "F5": [{GuardedTopic: ("_on_published",)}],
    "F6": [{GuardedBuffer: ("flush", "wait_until_ebb")}],
    "lease": [],
    "fence": [{GuardedRecovery: ("_build_highwaters",)}],
    "flush": [{GuardedProducer: ("flush",)}],
    "forgetting": [{GuardedRecovery: ("on_rebalance",), GuardedTable: ("send_changelog",)}],
}


def leave_out(guards: str) -> None:
    """``guards``: their names, with a space between two."""
    for guard in guards.split():
        for parts in GUARDS[guard]:
            for part, methods in parts.items():
                for method in methods:
                    delattr(part, method)
        if guard == "lease":  # Faust has none
            Lease.is_held = property(lambda _: True)  # type: ignore[assignment,method-assign]
            Lease.note = lambda *_: None  # type: ignore[method-assign]


def delay_publishing(seconds: float) -> None:
    """Each changelog write takes so long to leave the buffer, as it does when the brokers are slow."""
    send = GuardedBuffer._send_pending

    async def send_late(self: ProducerBuffer, fut: FutureMessage) -> None:
        await asyncio.sleep(seconds)
        await send(self, fut)

    GuardedBuffer._send_pending = send_late  # type: ignore[method-assign]


def delay_seeking(seconds: float) -> None:
    """The answer to "what is committed?" takes so long, as it does when the brokers are far away."""
    seek = AIOKafkaConsumerThread.seek_to_committed

    async def seek_late(self: AIOKafkaConsumerThread) -> Mapping[TP, int]:
        committed = await seek(self)
        await asyncio.sleep(seconds)
        return committed

    AIOKafkaConsumerThread.seek_to_committed = seek_late  # type: ignore[method-assign]


def answer_no_query(note: Callable[[str], None]) -> None:
    """Let the queries of offsets hang, as those to a broker that was stopped; ``note``: told of each."""

    async def end_offsets(_: AIOKafkaConsumer, __: Iterable[TP]) -> Mapping[TP, int]:
        note("asked")
        await asyncio.sleep(600)
        return {}

    AIOKafkaConsumer.end_offsets = end_offsets
